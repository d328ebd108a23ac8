from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpf import LIBRARY
from datapath.base.timing import VerifyTimes
from datapath.build.compile import compile_source, probe_compiler
from datapath.build.template import Kind
from datapath.endpoint import Endpoint
from datapath.errors import ToolMissing
from datapath.kernel.hooks import Direction
from datapath.object.reader import ObjectImage
from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec
from lab.bench.objects import NoEntryProgram, ObjectTemplate, entry_programs
from lab.cli.main import main
from lab.node import registry
from lab.results.deciding import deciding
from tests.lab.labs import cli, start


def image(*programs: ProgramSpec, maps: tuple[str, ...] = ()) -> ObjectImage:
    spec = CollectionSpec(
        path="some.o",
        maps={name: MapSpec(name, 3, 4, 4, 1) for name in maps},
        programs={program.name: program for program in programs},
        constants={},
        data=b"",
        license="GPL",
    )
    return ObjectImage(b"", spec, {}, {})


def program(name: str, section: str = "") -> ProgramSpec:
    return ProgramSpec(name, section or name, 3, b"")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cil_from_container",), {Direction.INGRESS: "cil_from_container"}),
        (
            ("handle_policy", "cil_to_host", "cil_from_host"),
            {Direction.INGRESS: "cil_to_host", Direction.EGRESS: "cil_from_host"},
        ),
    ],
)
def test_entry_programs_by_direction(names: tuple[str, ...], expected: dict[Direction, str]) -> None:
    assert entry_programs(image(*map(program, names))) == expected


def test_an_object_without_entry_program_is_refused() -> None:
    with pytest.raises(NoEntryProgram, match=r"some.o: the object has none of cil_from_container"):
        entry_programs(image(program("tail_handle_ipv4", "2/7")))


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("cilium_calls_65535", "cilium_calls_00123"),
        ("cilium_calls_04711", "cilium_calls_00123"),
        ("cilium_calls_hostns_65535", "cilium_calls_hostns_00123"),
        ("test_cilium_policy_65535", "test_cilium_policy_00123"),
        ("cilium_policy_v2_65535", "cilium_policy_v2_00123"),
        ("cilium_calls_overlay_2", None),
        ("cilium_lxc", None),
    ],
)
def test_given_object_gets_the_id_of_the_endpoint(name: str, renamed: str | None) -> None:
    template = ObjectTemplate(
        "given", Kind.LXC, Path("some.o"), image(program("p", "1/0xffff"), maps=(name,)), VerifyTimes()
    )
    mac = "02:00:00:00:00:01"
    names = dict(template.substitution(Endpoint(123, "lxc1", mac, mac, None, None, 1000)).names)
    assert names.pop("1/0xffff") == "1/0x007b"
    assert names == ({name: renamed} if renamed else {})


@pytest.mark.parametrize("arguments", ["--rounds 0", "--pods 0"])
def test_counts_below_one_are_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "reload", *arguments.split()]) == 2
    assert "is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.privileged
def test_a_file_that_is_no_object_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with start(cli("bench", "reload", "--object", "/etc/passwd")) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "reloadlab: /etc/passwd: not an ELF file\n")


@pytest.mark.privileged
@pytest.mark.parametrize("source", ["ours", "object"])
def test_whole_measurement_leaves_nothing(source: str, tmp_path: Path) -> None:
    """Every row has a time for every round; what tc cannot load is said in its own words."""
    arguments = ["--rounds", "2", "--pods", "2", "--json"]
    if source == "object":
        arguments += ["--object", str(compile_lxc(tmp_path)), "--no-endpoint-routes"]
    with start(cli("bench", "reload", *arguments)) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    result = json.loads(out)
    series = {each["name"]: each for each in result["series"]}
    rows = {name.removeprefix("reload: "): each for name, each in series.items() if name.startswith("reload: ")}
    measured = [name for name, row in rows.items() if not row["refusal"]]
    assert measured[0] == "floor: the bare system calls"
    # With both hooks all programs are reached; tc takes what is built for libbpf, not what Cilium's loader takes.
    assert len(measured) == (4 if source == "ours" else 5)
    assert ("floor: the bare system calls, all programs" in measured) == (source == "object")
    assert all(len(rows[name]["values"]) == 2 and min(rows[name]["values"]) > 0 for name in measured)
    # What the comparison of two such results depends on, out of all that was measured.
    decide = deciding("reload", [name for name, each in series.items() if each["values"] and not each["exact"]])
    assert decide == {f"reload: {name}" for name in measured if name.startswith("pipeline, ")}
    assert 0 <= result["load"]["others"] <= 1
    for row in rows.values():
        assert "maps" in row["refusal"] or row["values"]
    assert {"step: load programs", "step: attach ingress", "step: commit"} <= series.keys()
    assert len(series["many: 2 times the floor"]["values"]) == 3
    for way in ("1 at a time, verifying in 1 thread", "1 at a time", "2 at a time", "4 at a time"):
        assert len(series[f"many: 2 pods, {way}"]["values"]) == 3
        times = series[f"one of many: 2 pods, {way}"]
        assert (len(times["values"]), times["block"]) == (6, 2)
    traced = "traced reload: pipeline, verifying in 1 thread"
    if traced in series:
        inside = series[f"{traced}, in bpf(2) and netlink"]["values"]
        assert all(0 < part < whole for part, whole in zip(inside, series[traced]["values"], strict=True))
    entry = series["verified instructions: cil_from_container"]
    assert (entry["exact"], entry["values"][0] > 100) == (True, True)
    assert not registry.lab_root("bench-ours").exists()


OTHER_SUBJECTS = {
    "host": (
        "--subject host --devices eth0",
        "cil_to_host ingress of cilium_host",
        "attach ingress",
    ),
    "overlay": ("--subject overlay", "cil_from_overlay ingress", "attach egress"),
}


@pytest.mark.privileged
@pytest.mark.parametrize(("arguments", "hook", "step"), OTHER_SUBJECTS.values(), ids=OTHER_SUBJECTS)
def test_host_and_overlay_are_measured_with_and_without_what_nothing_reaches(
    arguments: str, hook: str, step: str
) -> None:
    argv = ["bench", "reload", *arguments.split(), "--rounds", "1", "--json", "--loader", "builtin", "--loader", "tc"]
    with start(cli(*argv)) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    result = json.loads(out)
    assert hook in result["notes"]["hooks"]
    series = {each["name"]: each for each in result["series"]}
    reached, programs = (series[f"object: {what}"]["values"][0] for what in ("reached programs", "programs"))
    rows = {name.removeprefix("reload: "): each for name, each in series.items() if name.startswith("reload: ")}
    measured = {name: row for name, row in rows.items() if not row["refusal"]}
    turns = {"floor: the bare system calls", "pipeline, verifying in 1 thread", "loader 1: builtin"}
    if reached < programs:
        turns |= {"floor: the bare system calls, all programs", "pipeline, all programs, in 1 thread"}
    assert turns <= measured.keys()
    assert {row["group"] for row in measured.values()} == {"reload"}
    assert "does not support" in rows["loader 2: tc"]["refusal"]
    assert f"step: {step}" in series
    assert not [name for name in series if name.startswith("many: ")]


def compile_lxc(directory: Path) -> Path:
    try:
        compiler = probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    includes = (LIBRARY, LIBRARY / "include")
    return compile_source(LIBRARY / "bpf_lxc.c", directory / "bpf_lxc.o", includes=includes, compiler=compiler)

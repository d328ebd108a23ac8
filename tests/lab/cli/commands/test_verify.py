from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import CompileError, ObjectError, ToolMissing
from lab.cli.commands import verify
from lab.cli.targets import BadOption

pytestmark = pytest.mark.privileged

SOURCE = r"""
#include <answer.h>
#define __section(NAME) __attribute__((section(NAME), used))
__section("from-container") int cil_from_container(void *ctx) { return ANSWER; }
#ifdef BAD
__section("2nd") int cil_bad(void *ctx) { return *(int *)(long)BAD; }
#endif
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "answer.h").write_text("")
    path = tmp_path / "one.c"
    path.write_text(SOURCE)
    return path


def call(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    verify.add_parser(parser.add_subparsers())
    args = parser.parse_args(["verify", *argv])
    return int(args.run(args))


def test_accepted_source(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(source), "-D", "ANSWER=42") == 0
    out = capsys.readouterr().out
    assert "1 program, 2 instructions, all accepted" in out
    assert "cil_from_container" in out
    assert [p.name for p in source.parent.iterdir() if p.suffix == ".o"] == []


def test_refused_program_is_reported_beside_the_others(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, before = tmp_path / "verifier.log", source.read_text()
    log.symlink_to(source)
    assert call(str(source), "-DANSWER", "-DBAD=8", "--json", "--log", str(log)) == 1
    document = json.loads(capsys.readouterr().out)
    programs = {p["name"]: p for p in document["programs"]}
    assert not document["ok"]
    assert programs["cil_from_container"]["accepted"]
    assert programs["cil_from_container"]["log"] is None
    bad = programs["cil_bad"]
    assert not bad["accepted"]
    assert "invalid mem access 'scalar'" in bad["summary"]
    assert "processed " in bad["log"]
    assert log.read_text() == f"=== cil_bad (section 2nd)\n{bad['log']}\n"
    # Root follows no link that somebody has put there.
    assert source.read_text() == before


def test_what_is_not_supported_is_named_and_no_refusal(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_text(SOURCE + '__section("kprobe/vfs_read") int other(void *ctx) { return 0; }')
    assert call(str(source), "-DANSWER=1") == 0
    out = capsys.readouterr().out
    assert "2 programs, 4 instructions, 1 accepted, 1 not supported" in out
    rows = {row[0]: row[1:] for row in table(out)}
    assert rows["other"][-1] == "not supported: it is of kind kprobe, which is not supported"
    assert call(str(source), "-DANSWER=1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    other = {p["name"]: p for p in document["programs"]}["other"]
    assert (other["verdict"], other["accepted"]) == ("not supported", False)
    assert other["reason"] == "it is of kind kprobe, which is not supported"


def test_what_nothing_leads_to_is_told(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From where each program is reached: a reload leaves out what nothing leads to."""
    source.write_text(
        SOURCE
        + """
struct map { unsigned int type, size_key, size_value, max_elem, flags, id, pinning, inner_id, inner_idx; };
struct map __section("maps") cilium_calls_1 = { 3, 4, 4, 8, 0, 2, 0, 0, 0 };
static void (*tail_call)(void *ctx, void *map, unsigned int slot) = (void *)12;
__section("to-container") int cil_to_container(void *ctx) { tail_call(ctx, &cilium_calls_1, 1); return 0; }
__section("2/1") int tail_called(void *ctx) { return 0; }
__section("2/2") int tail_alone(void *ctx) { return 0; }
"""
    )
    assert call(str(source), "-DANSWER=1") == 0
    rows = {row[0]: row[-2] for row in table(capsys.readouterr().out) if row[-1] == "accepted"}
    assert rows == {
        "cil_from_container": "cil_from_container",
        "cil_to_container": "cil_to_container",
        "tail_called": "cil_to_container",
        "tail_alone": "nothing",
    }
    assert call(str(source), "-DANSWER=1", "--json") == 0
    programs = json.loads(capsys.readouterr().out)["programs"]
    assert {program["name"]: ", ".join(program["reached_from"]) or "nothing" for program in programs} == rows


def test_nothing_to_judge_is_a_failure(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_text(SOURCE.replace("from-container", "kprobe/vfs_read"))
    assert call(str(source), "-DANSWER=1") == 1
    assert "1 program, 2 instructions, 1 not supported" in capsys.readouterr().out


def test_refusal_is_in_the_table(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(source), "-DANSWER=1", "-DBAD=8") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "1 refused" in out
    assert "refused: " in out
    assert "--log FILE" in out


def test_compared_with_an_earlier_output(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(source), "-DANSWER=1", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    before["programs"].append({**before["programs"][0], "name": "cil_of_old"})
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(before))
    more = '__section("%s") int cil_more%s(void *ctx) { volatile long a[%d] = {}; return a[0]; }'
    source.write_text(SOURCE + more % ("3rd", "", 1) + more % ("4th", "_stack", 2))
    assert call(str(source), "-DANSWER=1", "--compare", str(earlier)) == 0
    rows = {row[0]: row[1:] for row in table(capsys.readouterr().out)}
    assert rows["cil_from_container"][1:3] == ["2", "2"]
    assert rows["cil_more"][-1] == "new, accepted"
    assert [rows[name][4] for name in ("cil_from_container", "cil_more", "cil_more_stack")] == ["0", "8", "16"]
    assert rows["all"][4] == "16 (+16)"
    assert rows["gone: cil_of_old"] == []


def test_an_output_of_an_earlier_version_has_no_states(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(str(source), "-DANSWER=1", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    for program in before["programs"]:
        del program["total_states"], program["peak_states"]
        program["stack"] = 8
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(before))
    assert call(str(source), "-DANSWER=1", "--compare", str(earlier)) == 0
    row = {row[0]: row[1:] for row in table(capsys.readouterr().out)}["cil_from_container"]
    assert (row[4], row[6].isdigit(), row[7].isdigit()) == ("0 (-8)", True, True)


def test_differences_are_signed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(source), "-DANSWER=1", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    before["programs"][0] |= {"instructions": 1, "verified_instructions": 1002, "stack": None}
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(before))
    assert call(str(source), "-DANSWER=1", "--compare", str(earlier)) == 0
    rows = {row[0]: row[1:] for row in table(capsys.readouterr().out)}
    assert rows["cil_from_container"][1:3] == rows["all"][1:3] == ["2 (+1)", "2 (-1,000)"]
    assert rows["cil_from_container"][4] == "0"


@pytest.mark.parametrize(
    "text",
    ["nothing of the kind", "{}", '{"programs": [{"name": "cil_from_container"}]}', "[" * 100_000],
    ids=["text", "empty", "no numbers", "too deep"],
)
def test_no_earlier_output(text: str, source: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(text)
    with pytest.raises(BadOption, match=r"earlier\.json: no output of reloadlab verify --json"):
        call(str(source), "-DANSWER=1", "--compare", str(earlier))


def test_no_loads(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(str(source), "-DANSWER=1", "--loads", "0")
    assert "--loads: '0' is not a whole number of at least 1" in capsys.readouterr().err


def table(out: str) -> list[list[str]]:
    """Return the cells of all rows, and other lines as rows of one cell."""
    return [re.split(r"  +", line.strip()) for line in out.splitlines() if line.strip()]


def test_source_that_does_not_compile(source: Path) -> None:
    with pytest.raises(CompileError, match=r"one\.c:4:\d+: error: use of undeclared identifier 'ANSWER'"):
        call(str(source))


def test_object_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ObjectError, match="No such file"):
        call(str(tmp_path / "missing.o"))


def test_an_output_of_another_kernel_is_said_to_be_one(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else what its verifier counts differently would look like a change of the C."""
    assert call(str(source), "-DANSWER=1", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    assert before["kernel"] == os.uname().release
    earlier = tmp_path / "earlier.json"
    said = f"other kernel: {earlier} is of 6.1.0-a, this is {os.uname().release}: their verifiers count differently"
    for kernel, told in ((before["kernel"], []), ("6.1.0-a", [said]), (None, [])):
        earlier.write_text(json.dumps({**before, "kernel": kernel}))
        assert call(str(source), "-DANSWER=1", "--compare", str(earlier)) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if "kernel" in line] == told

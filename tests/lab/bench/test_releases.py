"""`bench releases`: every release is measured by its loader and by our pipeline; what one cannot do is told."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from bpf import LIBRARY
from lab.cli.main import main
from lab.node import registry
from lab.system.launch import module_argv
from tests.datapath.support import NEEDS_TCX
from tests.lab.labs import cli, start

PIPELINE = shlex.join(module_argv("lab.loaders.pipeline"))
"""Our own pipeline as a process that speaks the protocol: it tells its steps as a loader tells its phases."""

UPGRADE = "upgrade from the release before"


TIRED = shlex.join(module_argv("tests.lab.loaders.tired"))
"""A loader that loads everything once."""


def measured(file: Path, releases: str, code: int = 0) -> dict[str, Any]:
    file.write_text(releases)
    with start(cli("bench", "releases", str(file), "--rounds", "1", "--trials", "1", "--json")) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (code, "")
    return dict(json.loads(out))


def of_side(document: dict[str, Any], side: str) -> dict[str, list[float]]:
    return {each["name"]: each["values"] for each in document["series"] if each["side"] == side}


@pytest.mark.privileged
@pytest.mark.slow
def test_each_release_is_measured_by_its_loader_and_by_our_pipeline(tmp_path: Path) -> None:
    releases = f'["first"]\n["second"]\nloader = {json.dumps(PIPELINE)}\n["third"]\nloader = "false"\n'
    document = measured(tmp_path / "releases.toml", releases)
    sides = ["first", "second", "second, our pipeline", "third", "third, our pipeline"]
    assert list(document["subjects"]) == sides
    assert document["complete"] is True
    refused = {each["side"]: each["refusal"] for each in document["series"] if each["refusal"]}
    assert list(refused) == ["third"]
    assert refused["third"].startswith("loader false: ")
    whole = {f"packets: {name}, IPv{version}" for name in ("programs alone", "UDP, 18 bytes") for version in (4, 6)}
    whole |= {"reload", "verified instructions", "verified instructions: cil_from_container", "took: all is reloaded"}
    for side in set(sides) - {"third"}:
        found = of_side(document, side)
        assert all(found[name][0] > 0 for name in whole), side
        phases = sum(values[0] for name, values in found.items() if name.startswith("phase: "))
        assert 0 < phases <= found["reload"][0], side
        assert (found["lost: nothing is done"], found["lost: all is reloaded"]) == ([0], [0])
    # An upgrade is from what was loaded in the same way.
    upgraded = [side for side in sides if f"took: {UPGRADE}" in of_side(document, side)]
    assert upgraded == ["second, our pipeline", "third, our pipeline"]
    assert "phase: load programs bpf_lxc.o" in of_side(document, "second")
    assert "our step: load programs" in of_side(document, "second, our pipeline")
    assert not list(registry.lab_root("any").parent.glob("bench-release*"))


@pytest.mark.privileged
@pytest.mark.slow
def test_a_release_whose_reload_fails_does_not_end_the_others(tmp_path: Path) -> None:
    """It has the reason in the place of what it could not do, and figures where it could."""
    document = measured(tmp_path / "releases.toml", f'["tired"]\nloader = {json.dumps(TIRED)}\n')
    assert document["complete"] is True
    refused = {each["name"]: each["refusal"] for each in document["series"] if each["refusal"]}
    assert {name for name, why in refused.items() if "it is tired" in why} == {"reload", "worst delay: all is reloaded"}
    assert list(refused) == ["reload", "worst delay: all is reloaded"]
    tired, ours = of_side(document, "tired"), of_side(document, "tired, our pipeline")
    assert tired["packets: programs alone, IPv6"][0] > 0
    assert tired["lost: nothing is done"] == [0]
    assert ours["reload"][0] > 0
    assert ours["took: all is reloaded"][0] > 0


@pytest.mark.privileged
def test_where_no_release_can_be_loaded_the_reasons_are_told(tmp_path: Path) -> None:
    library = Path(shutil.copytree(LIBRARY, tmp_path / "bpf"))
    (library / "bpf_lxc.c").write_text("#error it is broken\n")
    document = measured(tmp_path / "releases.toml", f'["broken"]\nlibrary = "{library}"\n', code=1)
    (series,) = document["series"]
    assert (series["side"], series["name"], series["values"]) == ("broken", "reload", [])
    assert "it is broken" in series["refusal"]
    assert document["complete"] is True


@pytest.mark.privileged
@pytest.mark.slow
@NEEDS_TCX
def test_programs_by_tcx_are_measured(tmp_path: Path) -> None:
    document = measured(tmp_path / "releases.toml", '["tc"]\n["tcx"]\nattach = "tcx"\n')
    assert of_side(document, "tcx")["packets: programs alone, IPv4"][0] > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file names no release"),
        ("[", "not TOML"),
        ('["a"]\nlibrary = "/etc"\n', "/etc holds no bpf_lxc.c"),
        ('["a"]\nloader = "tc"\n["a, our pipeline"]\n', "two releases would be called a, our pipeline: give"),
    ],
    ids=["none", "no-toml", "no-library", "same-name"],
)
def test_what_names_no_releases_is_one_line(
    tmp_path: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "releases.toml").write_text(content)
    assert main(["bench", "releases", str(tmp_path / "releases.toml")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert (error.count("\n"), error.startswith("reloadlab: ")) == (1, True)

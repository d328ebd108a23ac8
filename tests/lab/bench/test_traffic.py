from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.bench.traffic import PROGRAMS, STREAM, UDP
from lab.cli.main import main
from lab.node import registry
from tests.lab.labs import cli, start


def test_seconds_become_the_unit_of_the_metric() -> None:
    assert UDP.value(2e-6) == pytest.approx(500_000)
    assert STREAM.value(1e-9) == pytest.approx(8)
    assert PROGRAMS.value(3e-7) == pytest.approx(300)


@pytest.mark.parametrize("arguments", [["--rounds", "0"]])
def test_counts_below_one_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "traffic", *arguments]) == 2
    assert "is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.timeout(600)
@pytest.mark.privileged
def test_whole_measurement_leaves_nothing() -> None:
    with start(cli("bench", "traffic", "--rounds", "1", "--json")) as process:
        out, err = process.communicate(timeout=500)
    assert (process.returncode, err) == (0, "")
    document = json.loads(out)
    assert document["subjects"][""]["library"] == "our sources"
    modes = ["endpoint routes off", "endpoint routes on", "endpoint routes off, 10,000 rules"]
    groups: dict[str, list[str]] = {}
    for series in document["series"]:
        assert len(series["values"]) == 1
        assert series["values"][0] > 0
        groups.setdefault(series["group"], []).append(series["name"].removeprefix(f"{series['group']}: "))
    assert len(groups) == 8
    for group, names in groups.items():
        programs = group.startswith("programs alone")
        assert names == (modes if programs else ["no programs", *modes, "two nodes, no programs", "two nodes"])
    assert not list(registry.lab_root("any").parent.glob("bench-plain*"))


@pytest.mark.timeout(600)
@pytest.mark.privileged
def test_two_builds_are_the_sides_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traffic.json"
    with start(cli("bench", "traffic", "--rounds", "1", "-D", "ENABLE_HOST_FIREWALL", "--out", str(path))) as process:
        _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    subjects = json.loads(path.read_text())["subjects"]
    assert list(subjects) == ["A", "B"]
    assert subjects["A"].get("commit") == subjects["B"].get("commit")
    assert (subjects["A"].get("defines"), subjects["B"]["defines"]) == (None, "ENABLE_HOST_FIREWALL=1")
    # One round says nothing, and everything has both sides.
    assert main(["compare", str(path), "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert len(found["metrics"]) == 2 * (3 + 3 * 4)
    assert all(row["rounds"] == [1, 1] for row in found["metrics"])

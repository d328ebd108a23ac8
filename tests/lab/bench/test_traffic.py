from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.bench.pairs import PLAIN, Build
from lab.bench.rounds import Measurement
from lab.bench.traffic import PROGRAMS, STREAM, UDP, MetricComparison, PacketCosts, TrafficOptions
from lab.cli.main import main
from lab.node import registry
from tests.lab.labs import cli, start

LABS = ("bench-plain", "bench-0-", "bench-1-")
"""How the labs of a measurement are called."""


def test_seconds_become_the_unit_of_the_metric() -> None:
    assert UDP.value(2e-6) == pytest.approx(500_000)
    assert STREAM.value(1e-9) == pytest.approx(8)
    assert PROGRAMS.value(3e-7) == pytest.approx(300)


@pytest.mark.parametrize("arguments", [["--rounds", "0"]])
def test_counts_below_one_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "traffic", *arguments]) == 2
    assert "is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "sides"), [(None, ["", "", ""]), (Build("second"), ["", "A", "B"])], ids=["one build", "two builds"]
)
def test_what_has_no_programs_is_of_neither_side(other: Build | None, sides: list[str]) -> None:
    names = [PLAIN, "on", "second: on" if other else "off"]
    row = MetricComparison(UDP, 4, (tuple(Measurement(name, (2e-6,), positions=(0,)) for name in names),))
    found = PacketCosts(TrafficOptions(other).builds, [row]).series()
    group = "UDP, 18 bytes, IPv4"
    assert [each.side for each in found] == sides
    assert [each.name for each in found] == [f"{group}: {name}" for name in (PLAIN, "on", "on" if other else "off")]
    assert [(each.group, each.unit, each.values) for each in found] == [(group, "packets/s", (500_000.0,))] * 3


MODES = ("endpoint routes off", "endpoint routes on", "endpoint routes off, 10,000 rules")


@pytest.mark.timeout(600)
@pytest.mark.privileged
def test_two_builds_are_the_sides_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole measurement: all metrics, in both versions of IP, of all modes; it leaves nothing."""
    path = tmp_path / "traffic.json"
    argv = ["bench", "traffic", "--rounds", "1", "-D", "ENABLE_HOST_FIREWALL", "--out", str(path), "--json"]
    with start(cli(*argv)) as process:
        out, err = process.communicate(timeout=500)
    assert (process.returncode, err) == (0, "")
    document = json.loads(out)
    assert document == json.loads(path.read_text())
    subjects = document["subjects"]
    assert list(subjects) == ["A", "B"]
    assert subjects["A"]["library"] == "our sources"
    assert subjects["A"].get("commit") == subjects["B"].get("commit")
    assert (subjects["A"].get("defines"), subjects["B"]["defines"]) == (None, "ENABLE_HOST_FIREWALL=1")
    groups: dict[str, list[tuple[str, str]]] = {}
    for series in document["series"]:
        assert len(series["values"]) == 1
        assert series["values"][0] > 0
        name = series["name"].removeprefix(f"{series['group']}: ")
        groups.setdefault(series["group"], []).append((series["side"], name))
    assert len(groups) == 8
    alone = [(side, mode) for side in "AB" for mode in MODES]
    two = [("", "two nodes, no programs"), ("A", "two nodes"), ("B", "two nodes")]
    for group, found in groups.items():
        assert found == (alone if group.startswith("programs alone") else [("", "no programs"), *alone, *two])
    assert not [lab for lab in registry.run_directory().glob("bench-*") if lab.name.startswith(LABS)]
    # One round says nothing, and everything has both sides.
    assert main(["compare", str(path), "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert len(found["metrics"]) == 2 * (3 + 3 * 4)
    assert all(row["rounds"] == [1, 1] for row in found["metrics"])

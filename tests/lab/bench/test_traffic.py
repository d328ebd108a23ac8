from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.bench.pairs import Build
from lab.bench.rounds import Measurement
from lab.bench.traffic import PROGRAMS, STREAM, UDP, MetricComparison, PacketCosts
from lab.cli.main import main
from lab.cli.traffic_view import show, to_json
from tests.lab.labs import cli, start


def test_units() -> None:
    assert UDP.value(2e-6) == pytest.approx(500_000)
    assert STREAM.value(1e-9) == pytest.approx(8)
    assert PROGRAMS.value(3e-7) == pytest.approx(300)


def report() -> PacketCosts:
    groups = (
        (Measurement("no programs", (1e-6, 2e-6)), Measurement("endpoint routes off", (2e-6, 4e-6))),
        (Measurement("two nodes, no programs", (4e-6, 4e-6)), Measurement("two nodes", (12e-6, 12e-6))),
    )
    builds = (Build(), Build("second", Path("/else/bpf"), (("A", "1"),)))
    return PacketCosts(builds, [MetricComparison(UDP, version, groups) for version in (4, 6)], others=0.5)


def test_each_group_has_its_own_reference() -> None:
    rows = to_json(report())["measures"][0]["rows"]
    assert [(row["name"], row["reference"], row["ratio"]) for row in rows] == [
        ("no programs", "no programs", 1.0),
        ("endpoint routes off", "no programs", 2.0),
        ("two nodes, no programs", "two nodes, no programs", 1.0),
        ("two nodes", "two nodes, no programs", 3.0),
    ]
    assert rows[0]["best"] == 1_000_000
    assert rows[2]["rounds"] == [250_000, 250_000]


def test_table_has_both_versions_and_says_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    show(report())
    out = capsys.readouterr().out
    assert "second: sources of /else/bpf -D A=1" in out
    assert out.count("endpoint routes off") == 1
    (line,) = (line for line in out.splitlines() if "two nodes  " in line)
    assert line.split()[2:] == ["83,333", "3.00", "3.00-3.00"] * 2


@pytest.mark.parametrize("arguments", [["--rounds", "0"]])
def test_bad_numbers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "traffic", *arguments]) == 2
    assert "is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.privileged
def test_whole_measurement_leaves_nothing() -> None:
    with start(cli("bench", "traffic", "--rounds", "1", "--json")) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    document = json.loads(out)
    assert [(build["name"], build["sources"]) for build in document["builds"]] == [("", "our sources")]
    modes = ["endpoint routes off", "endpoint routes on", "endpoint routes off, 10,000 rules"]
    for measure in document["measures"]:
        names = [row["name"] for row in measure["rows"]]
        assert names == (
            modes
            if measure["name"] == "programs alone"
            else ["no programs", *modes, "two nodes, no programs", "two nodes"]
        )
        assert all(len(row["rounds"]) == 1 and row["median"] > 0 for row in measure["rows"])
    assert len(document["measures"]) == 8
    assert not list(Path("/run/reloadlab").glob("bench-plain*"))

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab.bench.pairs import Build
from lab.bench.rounds import Measurement
from lab.bench.traffic import UDP, MetricComparison, PacketCosts
from lab.cli.traffic_view import show


def report() -> PacketCosts:
    groups = (
        (Measurement("no programs", (1e-6, 2e-6)), Measurement("endpoint routes off", (2e-6, 4e-6))),
        (Measurement("two nodes, no programs", (4e-6, 4e-6)), Measurement("two nodes", (12e-6, 12e-6))),
    )
    builds = (Build(), Build("second", Path("/else/bpf"), (("A", "1"),)))
    return PacketCosts(builds, [MetricComparison(UDP, version, groups) for version in (4, 6)], others=0.5)


def test_series_have_the_unit_of_their_metric() -> None:
    series = replace(report(), builds=(Build(),)).series()
    assert [each.name for each in series[:2]] == [
        "UDP, 18 bytes, IPv4: no programs",
        "UDP, 18 bytes, IPv4: endpoint routes off",
    ]
    assert len(series) == 8
    assert (series[0].values, series[0].unit, series[0].better) == ((1_000_000, 500_000), "packets/s", "higher")


def test_builds_are_sides_that_can_be_compared() -> None:
    both = tuple(Measurement(name, (1.0,)) for name in ("no programs", "two nodes", "second: two nodes"))
    costs = PacketCosts(report().builds, [MetricComparison(UDP, 4, (both,))])
    assert [(each.side, each.name) for each in costs.series()] == [
        ("", "UDP, 18 bytes, IPv4: no programs"),
        ("A", "UDP, 18 bytes, IPv4: two nodes"),
        ("B", "UDP, 18 bytes, IPv4: two nodes"),
    ]


def test_table_has_both_versions_and_says_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    show(report())
    out = capsys.readouterr().out
    assert "second: sources of /else/bpf -D A=1" in out
    assert out.count("endpoint routes off") == 1
    (line,) = (line for line in out.splitlines() if "two nodes  " in line)
    assert line.split()[2:] == ["83,333", "3.00", "3.00-3.00"] * 2

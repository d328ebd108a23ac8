from __future__ import annotations

import pytest

from lab.bench.topology import TopologyComparison, UpDownTimes
from lab.cli.topology_view import show


def test_a_line_per_size(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        TopologyComparison(pods, (UpDownTimes(0.01 * pods, 0.002),), (UpDownTimes(0.03 * pods, 0.001),))
        for pods in (10, 100)
    ]
    show(rows, 0.05)
    title, head, *lines, note = capsys.readouterr().out.splitlines()
    assert title == "medians of 1 round; ratio: script / lab"
    assert head.split()[:3] == ["pods", "lab", "up"]
    assert [line.split() for line in lines] == [
        ["10", "100.0", "300.0", "3.00", "2.0", "1.0", "0.50"],
        ["100", "1000.0", "3000.0", "3.00", "2.0", "1.0", "0.50"],
    ]
    assert "adds 50 ms" in note

"""traffic.py: when the packets of a phase were sent."""

from __future__ import annotations

from lab.scenario.traffic import count_in_parts


def test_sendings_are_counted_in_equal_parts_of_the_phase() -> None:
    flows = [[90, 100, 101, 149], [150, 199, 200, 500]]
    # 90, 200 and 500 are of other phases.
    assert count_in_parts(flows, 100, 200, parts=2) == [3, 2]
    assert count_in_parts(flows, 100, 200, parts=4) == [2, 1, 1, 1]
    assert count_in_parts([], 100, 200, parts=2) == [0, 0]

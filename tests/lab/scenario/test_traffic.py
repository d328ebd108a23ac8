from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import pytest

from lab.scenario import traffic
from lab.scenario.traffic import ScenarioTraffic, count_in_parts
from lab.system.pace import SLOWNESS_VARIABLE

TIMES = ("stall_after", "late_after", "start_timeout")


def options(monkeypatch: pytest.MonkeyPatch, slowness: str) -> dict[str, Any]:
    """Return the options of the traffic that a scenario starts where the machine is so slow."""
    found: dict[str, Any] = {}

    def stand_in(_: object, **given: Any) -> Any:
        found.update(given)
        return nullcontext()

    monkeypatch.setenv(SLOWNESS_VARIABLE, slowness)
    monkeypatch.setattr(traffic, "Traffic", stand_in)
    with ExitStack() as stack:
        ScenarioTraffic(rate=2000.0, policy=None).start(stack, [], [])
    return found


def test_a_slow_machine_sends_slower_and_waits_longer_by_the_same_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary, slow = options(monkeypatch, "1"), options(monkeypatch, "8")
    assert ordinary["rate"] == 2000.0
    assert slow["rate"] == 250.0
    assert [slow[name] for name in TIMES] == [8 * ordinary[name] for name in TIMES]


def test_sendings_are_counted_in_equal_parts_of_the_phase() -> None:
    flows = [[90, 100, 101, 149], [150, 199, 200, 500]]
    # 90, 200 and 500 are of other phases.
    assert count_in_parts(flows, 100, 200, parts=2) == [3, 2]
    assert count_in_parts(flows, 100, 200, parts=4) == [2, 1, 1, 1]
    assert count_in_parts([], 100, 200, parts=2) == [0, 0]

"""Packets at every point of a reload: a fixed number pushed between any two steps, on every path.

By gates of their own: without the packet of each flow that other scenarios send there.
"""

from __future__ import annotations

import time

import pytest

from reloadlab import Gate, Scenario
from scenarios.steps import steps_of

pytestmark = pytest.mark.node(bursts="none")

BURST = 3
"""Packets of each flow at each gate."""


@pytest.mark.parametrize("subject", ["host", "pod-1", "pod-2", "health"])
@pytest.mark.node(pods=2)
def test_between_any_two_steps(scenario: Scenario, subject: str) -> None:
    """Endpoint routes off: delivery by tail call."""
    push_between_steps(scenario, subject)


@pytest.mark.parametrize("subject", ["host", "pod-1", "pod-2", "health"])
@pytest.mark.node(pods=2, endpoint_routes=True)
def test_between_any_two_steps_with_endpoint_routes(scenario: Scenario, subject: str) -> None:
    """Endpoint routes on: delivery by the stack, through the egress program."""
    push_between_steps(scenario, subject)


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param("pod-1", marks=pytest.mark.node(pods=2, endpoint_routes=True)),
        pytest.param("host", marks=pytest.mark.node(pods=2)),
        pytest.param("overlay", marks=pytest.mark.node(pods=2, tunnel=True)),
    ],
)
def test_time_between_any_two_steps(scenario: Scenario, subject: str) -> None:
    """Those with several hooks: a calls map that one of their programs still uses has time to be emptied."""
    push_between_steps(scenario, subject, dwell=0.15)


def push_between_steps(scenario: Scenario, subject: str, *, dwell: float = 0.0) -> None:
    """Reload, stopping after each step until all packets of a burst are answered.

    `dwell` seconds more are spent at each gate: what the kernel does behind a reload's back, such as emptying a calls
    map, takes it up to 0.1 s.
    """
    silent: list[str] = []

    def push(step: object, work: object) -> None:
        if silent:
            return
        deadline = time.monotonic() + dwell
        while True:
            silent.extend(f"{step}: {burst}" for burst in scenario.traffic.burst_all(BURST) if not burst.complete)
            if silent or time.monotonic() >= deadline:
                break

    gate = Gate(push, after="*")
    scenario.reload(subject, gate=gate)
    assert gate.passed >= steps_of(scenario.agent, subject)
    assert not silent

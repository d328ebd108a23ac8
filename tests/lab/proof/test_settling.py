"""What the kernel does later has been done before packets are sent."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from datapath.kernel import bpf
from datapath.kernel.map import open_pin
from lab.node.topology import NodeSpec
from lab.proof import settling
from lab.proof.action import RATE, Action
from lab.proof.prove import prove
from lab.proof.result import END
from lab.proof.settling import Settler
from lab.proof.two import Meeting, Two
from lab.scenario.scenario import Scenario
from lab.system.pace import slowness
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

CALLS = "cilium_calls_00101"


def forget(scenario: Scenario, cancel: threading.Event | None = None) -> int:
    """Remove the last pin of the calls map of pod-1, whose programs still jump through it; return its id."""
    pin = scenario.agent.config.globals / CALLS
    with open_pin(pin) as array:
        pin.unlink()
        return array.info.id


def slots(ident: int) -> Mapping[int, int]:
    fd = bpf.map_fd_by_id(ident)
    try:
        return bpf.map_slots(fd, bpf.map_info(fd).max_entries)
    finally:
        os.close(fd)


def test_a_calls_map_that_nobody_holds_is_waited_for() -> None:
    """Its last pin is gone, as after a kill; the program at the hook still jumps through it."""
    with Scenario(NodeSpec(unique_name("settle"), pods=1), rate=0) as scenario:
        ident = forget(scenario)
        Settler().settle([scenario.node])
        assert slots(ident) == {}
        scenario.reload("pod-1")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["held by a process", "pinned elsewhere"])
def test_a_calls_map_that_has_a_user_is_not_waited_for(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays full as long as it is held, by a loader that lives say."""
    monkeypatch.setattr(settling, "_TIMEOUT", 600 / slowness())
    with Scenario(NodeSpec(unique_name("settle"), pods=1), rate=0) as scenario:
        settler = Settler()
        with open_pin(scenario.agent.config.globals / CALLS) as array:
            aside = scenario.agent.config.bpffs / "aside"
            holder = subprocess.Popen(["sleep", "600"], pass_fds=() if elsewhere else [array.fd])
            if elsewhere:
                array.pin(aside)
        try:
            ident = forget(scenario)
            settler.settle([scenario.node])
            assert slots(ident)
        finally:
            holder.kill()
            holder.wait()
            Path(aside).unlink(missing_ok=True)
        # No call closes the descriptor: what was found without a pin is looked at again.
        settler.settle([scenario.node], only_added=not elsewhere)
        assert slots(ident) == {}
        scenario.reload("pod-1")


def test_what_has_a_user_that_cannot_be_seen_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor under way in a message keeps it full; the second time the map is known."""
    monkeypatch.setattr(settling, "held_maps", frozenset)
    monkeypatch.setattr(settling, "_TIMEOUT", 0.1 / slowness())
    with Scenario(NodeSpec(unique_name("settle"), pods=1), rate=0) as scenario:
        settler = Settler()
        with open_pin(scenario.agent.config.globals / CALLS) as array:
            forget(scenario)
            settler.settle([scenario.node])
            monkeypatch.setattr(settling, "_TIMEOUT", 600 / slowness())
            settler.settle([scenario.node])
            assert slots(array.info.id)
        scenario.reload("pod-1")


def reload(subject: str, scenario: Scenario, cancel: threading.Event) -> None:
    scenario.agent.reload(subject, cancel=cancel)


def test_prove_finds_a_pod_dead_at_the_end_of_what_has_killed_it() -> None:
    """Not at whatever comes a second later, when the kernel has emptied the map."""
    actions = [Action("forgets", forget), Action("reload", partial(reload, "pod-1"))]
    proof = prove(NodeSpec("settle-proof", pods=1), actions)
    lost = [finding.gated for finding in proof.findings if finding.violation.invariant == 7]
    assert ("forgets", END) in {(gated.what, gated.call.text) for gated in lost if gated is not None}


def test_two_at_once_find_a_pod_dead_as_soon_as_packets_are_sent() -> None:
    with Scenario(NodeSpec("settle-two", pods=1), rate=RATE) as scenario:
        meeting = Meeting("forgets", None)
        forget(scenario)
        Two(scenario)._push(meeting, "not answered")
        scenario.abandon()
    assert any("pod-1" in flow for flow in meeting.wrong), meeting.wrong

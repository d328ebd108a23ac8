"""The proof of a reload: clean for our loader, and what a faulty one does is found at its call."""

from __future__ import annotations

import json
import threading

import pytest

from datapath.errors import Cancelled
from lab.node import registry
from lab.node.topology import NodeSpec
from lab.proof.action import Action
from lab.proof.actions import reloads
from lab.proof.prove import prove
from lab.scenario.scenario import Scenario
from tests.lab.emptied import EmptySlot, before
from tests.lab.proof.refused import refused

GAP = 0.001
"""Seconds that a slot stays empty by itself: packets come at the next call, however soon that is."""


def test_no_call_of_our_loader_loses_a_packet() -> None:
    spec = NodeSpec("proof-of-ours", endpoint_routes=True)
    proof = prove(spec, reloads(spec, ["pod-1"], []))
    assert proof.findings == []
    assert (proof.lost, proof.gaps) == (0, [])
    texts = [gated.call.text for gated in proof.calls]
    assert "MAP_UPDATE cilium_call_policy[101]" in texts
    attached = [text.split() for text in texts if text.startswith("RTM_NEWTFILTER lxc")]
    assert sorted(hook for _, _, hook in attached) == ["egress", "ingress"]
    # Every call is a gate, and packets of all flows went through at each that follows a change.
    assert proof.sent > len(texts)


def test_the_call_at_which_packets_are_lost_is_named() -> None:
    """The slot is empty from the call after its deletion until it is filled again, and nowhere else."""

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.change = before("attach ingress", EmptySlot("slot", GAP))
        scenario.agent.reload("pod-1")

    proof = prove(NodeSpec("proof-of-fault"), [Action("reload of pod-1", reload)])
    assert proof.lost > 0
    lost = {finding.gated for finding in proof.findings if finding.violation.invariant == 7}
    assert None not in lost
    at = {proof.calls.index(gated) for gated in lost if gated is not None}
    emptied = next(n for n, gated in enumerate(proof.calls) if gated.call.text == "MAP_DELETE cilium_call_policy[101]")
    # What was sent right before may be under way still.
    assert emptied + 1 in at
    assert at <= {emptied, emptied + 1}
    document = proof.to_json()
    assert json.loads(json.dumps(document)) == document
    assert {finding["call"] for finding in document["findings"]} >= at


def test_a_reload_that_fails_is_a_finding() -> None:
    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.define(REJECTED_BY_VERIFIER="1")
        scenario.agent.reload("pod-1")

    proof = prove(NodeSpec("proof-of-failure"), [Action("reload of pod-1", reload)])
    assert not proof.holds
    assert "reload of pod-1 failed" in proof.findings[0].violation.what


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pod-9"], "no endpoint pod-9; it has host, health, pod-1, pod-2"),
        (["overlay"], "no endpoint overlay"),
        (["--with", "1x"], "'1x' is not the name of a macro"),
        (["--library", "/nowhere"], "/nowhere holds no bpf_lxc.c"),
        (["--rounds", "0"], "0"),
        (["--switch", "host"], "--switch switches the whole node"),
    ],
)
def test_wrong_calls(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(["prove", *argv], capsys)


def test_cancelled_in_the_middle() -> None:
    """What is left of a long reload is not stopped any more, and nothing stays of the node."""
    cancel = threading.Event()

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.reload("pod-1")

    before = registry.list_labs()
    cancel.set()
    with pytest.raises(Cancelled):
        prove(NodeSpec("proof-cancelled"), [Action("reload of pod-1", reload)], cancel=cancel)
    assert registry.list_labs() == before

"""A loader that is not ours under gates: its own calls are proved, fail, and are where it is killed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab.loaders.command import LoaderCommand
from lab.loaders.protocol import NotSupported
from lab.node.topology import NodeSpec
from lab.proof.actions import reloads
from lab.proof.cases import KILL, Case, Faults
from lab.proof.errnos import first_errno_of
from lab.proof.prove import prove
from lab.proof.sweep import sweep
from lab.system.launch import module_argv

PIPELINE = LoaderCommand("ours", tuple(module_argv("lab.loaders.pipeline")))
CARELESS = LoaderCommand("careless", tuple(module_argv("tests.lab.loaders.careless")))


def test_each_call_of_a_loader_is_met_by_packets() -> None:
    spec = NodeSpec("gated-prove", pods=1)
    proof = prove(spec, reloads(spec, ["pod-1"], []), loader=PIPELINE)
    assert (proof.findings, proof.lost, proof.gaps) == ([], 0, [])
    texts = [gated.call.text for gated in proof.calls]
    assert any(text.startswith("PROG_LOAD cil_from_contai") for text in texts)
    assert any(text.startswith("RTM_NEWTFILTER lxc") for text in texts)
    # What the lab does itself is not its call: the object was put into its place before.
    assert not any("bpf_lxc.o" in text for text in texts)


def test_the_call_at_which_a_loader_loses_packets_is_named() -> None:
    spec = NodeSpec("gated-found", pods=1)
    proof = prove(spec, reloads(spec, ["pod-1"], []), loader=CARELESS)
    lost = {finding.gated for finding in proof.findings if finding.violation.invariant == 7}
    assert proof.lost > 0
    emptied = next(n for n, gated in enumerate(proof.calls) if gated.call.text == "MAP_DELETE cilium_call_policy[101]")
    # What was sent right before may be under way still.
    at = {proof.calls.index(gated) for gated in lost if gated is not None}
    assert at
    assert at <= {emptied, emptied + 1}


def test_a_loader_fails_and_is_killed_at_its_calls() -> None:
    spec = NodeSpec("gated-faults", pods=1)

    def choose(cases: Sequence[Case]) -> Sequence[Case]:
        return [case for case in cases if case.place.fits("RTM_NEWTFILTER * ingress")]

    result = sweep(spec, reloads(spec, ["pod-1"], []), faults=Faults(first_errno_of), choose=choose, loader=PIPELINE)
    assert [case.fault == KILL for case in result.cases] == [False, True]
    failed, killed = (case.ended for case in result.cases)
    assert failed.startswith("failed: loader pipeline: ")
    assert killed == "killed"
    assert [case.wrong for case in result.cases] == [[], []]
    assert (result.findings, result.gaps) == ([], [])


def test_a_loader_that_cannot_be_cancelled_is_not_asked() -> None:
    spec = NodeSpec("gated-cancel", pods=1)
    faults = Faults(lambda call: (), kill=False, cancel=True)
    with pytest.raises(NotSupported, match="not supported by loader pipeline: the cancellation of a reload"):
        sweep(spec, reloads(spec, ["pod-1"], []), faults=faults, loader=CARELESS)

"""A loader that is not ours under gates: its own calls are proved, fail, and are where it is killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError
from datapath.reload.step import Plan
from lab.agent.agent import Failure
from lab.agent.reloads import reload_by_workers
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Kill
from lab.loaders.command import LoaderCommand
from lab.loaders.protocol import LoaderDied, NotSupported
from lab.node.topology import NodeSpec
from lab.proof.action import Action, do_gated
from lab.proof.actions import reloads
from lab.proof.cases import KILL, Case, Faults
from lab.proof.errnos import first_errno_of
from lab.proof.prove import prove
from lab.proof.sweep import sweep
from lab.scenario.scenario import Scenario
from lab.system.forkpool import WorkerDied
from lab.system.launch import module_argv
from tests.datapath.support import NEEDS_TCX
from tests.lab.labs import unique_name
from tests.lab.loaders.living import living_in
from tests.lab.proof.gaps import gaps_of
from tests.lab.proof.lost import assert_lost_behind

PIPELINE = LoaderCommand("ours", tuple(module_argv("lab.loaders.pipeline")))
CARELESS = LoaderCommand("careless", tuple(module_argv("tests.lab.loaders.careless")))
PODS_ONLY = LoaderCommand("pods", tuple(module_argv("tests.lab.loaders.podsonly")))


def test_each_call_of_a_loader_is_met_by_packets() -> None:
    spec = NodeSpec("gated-prove", pods=1)
    proof = prove(spec, reloads(spec, ["pod-1"], []), loader=PIPELINE)
    assert (proof.findings, proof.lost, gaps_of(proof.gaps)) == ([], 0, [])
    texts = [gated.call.text for gated in proof.calls]
    assert any(text.startswith("PROG_LOAD cil_from_contai") for text in texts)
    assert any(text.startswith("RTM_NEWTFILTER lxc") for text in texts)
    # What the lab does itself is not its call: the object was put into its place before.
    assert not any("bpf_lxc.o" in text for text in texts)


def test_the_call_at_which_a_loader_loses_packets_is_named() -> None:
    spec = NodeSpec("gated-found", pods=1)
    proof = prove(spec, reloads(spec, ["pod-1"], []), loader=CARELESS)
    assert_lost_behind(proof, "MAP_DELETE cilium_call_policy[101]")


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


@pytest.mark.parametrize(
    ("lie", "found"),
    [("undone", "uses the calls map of the load before"), ("half", "uses a calls map that is not pinned")],
)
def test_a_loader_that_says_that_it_has_succeeded_is_held_to_it(lie: str, found: str) -> None:
    """Not to what the next reload makes of it, which puts everything right."""
    spec, lying = NodeSpec(f"gated-{lie}", pods=1), module_argv("tests.lab.loaders.lying")
    loader = LoaderCommand("lying", (*lying, lie))

    def choose(cases: Sequence[Case]) -> Sequence[Case]:
        return [case for case in cases if case.place.fits("RTM_NEWTFILTER * ingress") and case.fault == "ENOBUFS"]

    result = sweep(spec, reloads(spec, ["pod-1"], []), faults=Faults(first_errno_of), choose=choose, loader=loader)
    (case,) = result.cases
    assert case.ended == "succeeded"
    assert any(found in what for what in case.wrong)
    assert not case.survived


def test_a_loader_that_cannot_be_cancelled_is_not_asked() -> None:
    spec = NodeSpec("gated-cancel", pods=1)
    faults = Faults(lambda call: (), kill=False, cancel=True)
    with pytest.raises(NotSupported, match="not supported by loader pipeline: the cancellation of a reload"):
        sweep(spec, reloads(spec, ["pod-1"], []), faults=faults, loader=CARELESS)


@pytest.mark.parametrize("subject", ["host", "xdp"])
def test_what_a_loader_leaves_to_our_pipeline_is_met_as_well(subject: str) -> None:
    """Each call of a process of ours, which loads it."""
    spec = NodeSpec("gated-ours", pods=1, devices=("eth0",), xdp="generic")
    proof = prove(spec, reloads(spec, [subject], []), loader=PODS_ONLY)
    assert (proof.findings, proof.lost, proof.undecided) == ([], 0, "")
    texts = [gated.call.text for gated in proof.calls]
    hook = "RTM_NEWTFILTER cilium_host" if subject == "host" else "LINK_UPDATE"
    assert any(text.startswith(hook) for text in texts)
    assert proof.holds


def test_no_other_process_takes_the_place_of_one_that_died_under_gates() -> None:
    """What it would do, nobody would see: the second pod's reload fails as the first one's did."""
    results: list[object] = []
    seen: list[str] = []

    def decide(call: Call) -> Answer:
        seen.append(call.text)
        return Kill() if call.fits("RTM_NEWTFILTER lxc*") else None

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        results.extend(scenario.agent.reload_many(["pod-1", "pod-2"], workers=1, cancel=cancel))

    with Scenario(NodeSpec("gated-killed", pods=2), rate=0, loader=PIPELINE) as scenario:
        do_gated(scenario, Action("both", reload, subjects=("pod-1", "pod-2")), decide)
        errors = [result.error for result in results if isinstance(result, Failure)]
        assert [type(error) for error in errors] == [LoaderDied, LoaderDied]
        assert len([text for text in seen if text.startswith("RTM_NEWTFILTER")]) == 1
        # The next one begins anew.
        scenario.expect(warnings=frozenset({"left by a reload that did not end"}))
        scenario.reload("pod-1", "pod-2")
        scenario.abandon()


def test_files_of_a_directory_of_the_loaders_own_are_calls_if_it_is_named(tmp_path: Path) -> None:
    """It notes each request in a file there."""
    script = f"touch {tmp_path}/noted; exec {shlex.join(PIPELINE.argv)}"
    command = LoaderCommand("notes", ("sh", "-c", script))
    for gated, found in (((), []), ((tmp_path,), [f"openat {tmp_path}/noted"])):
        seen: list[Call] = []
        with Scenario(NodeSpec("gated-files", pods=1), rate=0, loader=command, gated=gated) as scenario:
            (action,) = reloads(scenario.node.spec, ["pod-1"], [])
            do_gated(scenario, action, seen.append)
            scenario.abandon()
        assert [call.text for call in seen if str(tmp_path) in call.text] == found


@pytest.mark.parametrize("killed", ["worker", "loader"])
def test_what_a_loader_has_started_goes_with_who_is_killed(killed: str) -> None:
    """With a process of ours the kernel kills its loader, and no more."""
    script = f"if [ -e leaving ]; then setsid sleep 1000 & fi; exec {shlex.join(PIPELINE.argv)}"
    command = LoaderCommand("leaves", ("bash", "-c", script))
    pattern = "RTM_NEWTFILTER *" if killed == "loader" else "rename */bpf_lxc.o"
    with Scenario(NodeSpec("gated-rest", pods=1), rate=0, loader=command) as scenario:
        state, (action,) = scenario.agent.config.state, reloads(scenario.node.spec, ["pod-1"], [])
        started: list[int] = []

        def decide(call: Call) -> Answer:
            if not call.fits(pattern):
                return None
            started.extend(set(living_in(state)) - before)
            return Kill()

        before = set(living_in(state))
        (state / "leaving").touch()
        with pytest.raises(LoaderDied if killed == "loader" else WorkerDied):
            do_gated(scenario, action, decide, forked=True)
        (state / "leaving").unlink()
        assert len(started) == 2
        assert set(living_in(state)) == before
        scenario.expect(warnings=frozenset({"left by a reload that did not end"}))
        scenario.reload("pod-1")
        scenario.abandon()


def test_what_loaders_of_workers_have_started_goes_with_a_worker_that_is_killed() -> None:
    """One that reloads for us, as with --workers: killed when its loader has done the first pod."""
    script = f"if [ -e leaving ]; then setsid sleep 1000 & fi; exec {shlex.join(PIPELINE.argv)}"
    command, here = LoaderCommand("leaves", ("bash", "-c", script)), os.getpid()

    def die(plan: Plan) -> Plan:
        if plan.subject == "pod-2" and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return plan

    with Scenario(NodeSpec("gated-workers", pods=2), rate=0, loader=command) as scenario:
        agent = scenario.agent
        state, before = agent.config.state, set(living_in(agent.config.state))
        (state / "leaving").touch()
        agent.change = die
        done, failed = reload_by_workers(agent, ["pod-1", "pod-2"], workers=1, cancel=None, on_worker=None)
        (state / "leaving").unlink()
        assert not isinstance(done, Failure)
        assert isinstance(failed, Failure)
        assert isinstance(failed.error, WorkerDied)
        assert set(living_in(state)) == before
        scenario.abandon()


def test_a_supervisor_that_fails_is_no_error_of_the_end_of_a_loader() -> None:
    """The calls of the process of ours, and of its loader, fail from then on; what they say of that is told."""

    def decide(call: Call) -> Answer:
        raise NotSupported("the test", "any call")

    with Scenario(NodeSpec("gated-blind", pods=1), rate=0, loader=PIPELINE) as scenario:
        (action,) = reloads(scenario.node.spec, ["pod-1"], [])
        with pytest.raises(ReloadlabError):
            do_gated(scenario, action, decide, forked=True)
        scenario.reload("pod-1")
        scenario.abandon()


def test_what_is_refused_in_a_process_of_its_own_is_known_here() -> None:
    with Scenario(NodeSpec("gated-refused", pods=1), rate=0, loader=PODS_ONLY) as scenario:
        action = Action("refused", lambda scenario, cancel: scenario.agent.refuse("this"), subjects=("host",))
        with pytest.raises(NotSupported, match="not supported by loader pipeline: this"):
            do_gated(scenario, action, lambda call: None)
        assert [error.what for error in scenario.refused] == ["this"]


@pytest.mark.parametrize(
    ("module", "options", "what"),
    [
        pytest.param("tconly", {"attach": Attachment.TCX}, "tcx", marks=NEEDS_TCX),
        ("fileless", {"defines": (("ENABLE_HOST_FIREWALL", "1"),)}, "the host's firewall (ENABLE_HOST_FIREWALL)"),
    ],
)
def test_what_a_node_is_to_have_later_is_asked_of_the_loader_as_well(
    module: str, options: dict[str, Any], what: str
) -> None:
    """A scenario demands it when everything is loaded; without, nothing is reloaded as if it were so."""
    loader = LoaderCommand("own", tuple(module_argv(f"tests.lab.loaders.{module}")))
    with Scenario(NodeSpec(unique_name("later"), pods=1), rate=0, loader=loader) as scenario:
        scenario.abandon()
        scenario.agent.configure(**options)
        with pytest.raises(NotSupported, match=f"not supported by loader pipeline: {re.escape(what)}"):
            scenario.reload("pod-1")
        assert [error.what for error in scenario.refused] == [what]


def test_a_scenario_defines_no_macros_for_a_loader_that_compiles() -> None:
    spec = NodeSpec(unique_name("macros"), pods=1)
    compiles = LoaderCommand("own", tuple(module_argv("tests.lab.loaders.fileless")))
    with Scenario(spec, rate=0, loader=compiles) as scenario:
        scenario.abandon()
        scenario.define()
        with pytest.raises(NotSupported, match="other macros: it compiles by itself"):
            scenario.define(POLICY_MAP_SIZE="4096")


def test_macros_that_do_not_reach_a_loader_are_told() -> None:
    """It compiles by itself; only the lab's maps are made with them. Without macros: test_pipeline.py."""
    spec = NodeSpec(unique_name("macros"), pods=1)
    compiles = LoaderCommand("own", tuple(module_argv("tests.lab.loaders.fileless")))
    with Scenario(spec, rate=0, loader=compiles, defines=(("POLICY_MAP_SIZE", "4096"),)) as scenario:
        scenario.abandon()
        assert [what for what in scenario.agent.not_supported if what.startswith("macros: ")]


def test_the_firewall_of_a_loader_that_declares_it_is_no_macro_that_does_not_reach_it() -> None:
    loader = LoaderCommand("own", tuple(module_argv("tests.lab.loaders.compiling")))
    with Scenario(
        NodeSpec(unique_name("firewall"), pods=1), rate=0, loader=loader, defines=(("ENABLE_HOST_FIREWALL", "1"),)
    ) as scenario:
        scenario.abandon()
        assert not [what for what in scenario.agent.not_supported if what.startswith("macros: ")]

"""Sweeps: our loader survives a failure at every call; a loader that does not is told, with how to see it again."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError
from datapath.kernel.pins import RETIRED
from lab.cli.main import main
from lab.cli.networks import own_node
from lab.cli.proofs import actions_of, add_action_options, check_actions, spread
from lab.corpus import steps
from lab.gates.call import RECEIVE, Call
from lab.node.topology import NodeSpec
from lab.proof.action import Action
from lab.proof.actions import reattaches, reloads, switches
from lab.proof.cases import KILL, Case, Faults, Place, cases_of
from lab.proof.errnos import errnos_of, first_errno_of
from lab.proof.sweep import Sweep, SweepResult, sweep
from lab.scenario.scenario import Scenario
from tests.datapath.support import NEEDS_TCX
from tests.lab.proof.refused import refused
from tests.lab.proof.starved import starved

SAMPLE = 24
"""Cases of about 320: the whole sweeps are `make faults`."""

NO_ERRNO = Faults(lambda call: (), kill=False, cancel=True)


def title(case: Case) -> str:
    return f"{case.title}: {case.ended}: {'; '.join(case.wrong)}"


def survived(result: SweepResult, count: int, ends: set[str], *, gaps: int = 0) -> None:
    """Hold a sweep to it: all cases were survived, and some of them ended in each of these ways."""
    assert [title(case) for case in result.cases if not case.survived] == []
    assert (result.findings, len(result.gaps)) == ([], gaps)
    assert result.holds
    assert ends <= {case.ended.partition(":")[0] for case in result.cases}
    assert len(result.cases) == count


@pytest.mark.privileged
@pytest.mark.parametrize("subject", ["pod-1", "host"])
def test_a_sample_of_the_cases_is_survived(subject: str) -> None:
    spec = NodeSpec(f"sweep-{subject}", endpoint_routes=True, devices=("eth0",))
    result = sweep(spec, reloads(spec, [subject], []), choose=partial(spread, number=SAMPLE))
    survived(result, SAMPLE, {"failed", "killed"})


@pytest.mark.privileged
def test_who_interrupts_a_sweep_is_told_how_far_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, ran = Sweep.run, list[Case]()

    def interrupted(sweep: Sweep, action: Action, case: Case) -> None:
        run(sweep, action, case)
        ran.append(case)
        if len(ran) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Sweep, "run", interrupted)
    assert main(["faults", "pod-1", "--pods", "1", "--sample", "6"]) == 130
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "2 cases until then, 2 survived; nothing was checked at the end"
    assert err == "reloadlab: interrupted\n"


@pytest.mark.privileged
def test_a_node_serves_so_many_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of each made every fork of the next ones slower: half a gigabyte after 2,500 cases."""
    monkeypatch.setattr("lab.proof.sweep.CASES", 2)
    spec, faults, nodes = NodeSpec("sweep-nodes", pods=1), Faults(lambda call: ()), list[Scenario]()

    def make() -> Scenario:
        nodes.append(Scenario(spec, bursts="none"))
        return nodes[-1]

    with Sweep(make, faults) as runner:
        (action,) = reloads(spec, ["pod-1"], [])
        cases = cases_of(action, runner.calls(action), faults)[:5]
        for case in cases:
            runner.run(action, case)
    assert [title(case) for case in cases if not case.survived] == []
    assert (len(nodes), runner.findings) == (3, [])


@pytest.mark.privileged
def test_a_sample_of_the_cases_of_a_migration_is_survived() -> None:
    """There and back, among them those in which a map of the node is neither here nor there."""
    spec = NodeSpec("sweep-migration", pods=1)
    actions = reloads(spec, ["pod-1"], [("POLICY_MAP_SIZE", "4096")])

    def choose(cases: Sequence[Case]) -> list[Case]:
        moves = [case for case in cases if case.place.fits("*cilium_policy_00101*") and case.fault == KILL]
        return [*spread(cases, 4), *spread(moves, 2)]

    survived(sweep(spec, actions, choose=choose), 12, {"failed", "killed"})


@pytest.mark.privileged
def test_a_replaced_map_that_cannot_be_let_go_is_named_in_a_warning() -> None:
    """The reload is done, and the pin stays: the next one finds it."""
    spec = NodeSpec("sweep-retired", pods=1)
    actions = reloads(spec, ["host"], [("ENDPOINTS_MAP_SIZE", "4096")])

    def choose(cases: Sequence[Case]) -> list[Case]:
        place = Place("OBJ_GET_INFO_BY_FD cilium_lxc:retired-*", 1)
        return [case for case in cases if case.place == place and case.fault == "ENOMEM"]

    survived(sweep(spec, actions, choose=choose), 2, {"succeeded"})


@pytest.mark.privileged
def test_a_sample_of_the_cases_of_a_switch_is_survived() -> None:
    spec = NodeSpec("sweep-switch", pods=1)
    result = sweep(spec, switches(spec), choose=partial(spread, number=2))
    assert [title(case) for case in result.cases if not case.survived] == []
    assert result.holds
    assert len(result.cases) == 4


@pytest.mark.privileged
def test_a_switch_that_fails_at_its_end_leaves_the_pods_a_route() -> None:
    """Their own are gone by then: the node's route, which is asked for once more, stays."""
    spec = NodeSpec("sweep-node-route", pods=1)
    place = Place("RTM_NEWROUTE 10.244.0.1/32 dev cilium_host table 254", 2)
    result = sweep(spec, switches(spec)[1:], choose=lambda cases: [case for case in cases if case.place == place])
    assert [title(case) for case in result.cases if not case.survived] == []
    assert result.holds
    assert {case.ended.partition(":")[0] for case in result.cases} == {"failed", "killed"}


@pytest.mark.privileged
@NEEDS_TCX
def test_a_sample_of_the_cases_from_tc_to_tcx_and_back_is_survived() -> None:
    """Among them those in which a link is there and has no pin, or is about to be detached."""
    spec = NodeSpec("sweep-reattach", pods=1)

    def choose(cases: Sequence[Case]) -> list[Case]:
        links = [case for case in cases if case.place.fits("LINK_*") or case.place.fits("OBJ_PIN *links*")]
        return [*spread(cases, 2), *spread(links, 3)]

    survived(sweep(spec, reattaches(spec, ["pod-1"], Attachment.TC), choose=choose), 10, {"failed", "killed"}, gaps=1)


@pytest.mark.privileged
@pytest.mark.parametrize("reattached", [False, True], ids=["in place", "in another mode"])
def test_a_sample_of_the_cases_of_xdp_is_survived(reattached: bool) -> None:
    """Among them those in which the hook is empty, or a link has no pin yet: denied packets are dropped after each."""
    spec = NodeSpec("sweep-xdp", pods=1, devices=("eth0",), xdp="native")
    actions = reattaches(spec, ["xdp"], Attachment.TC) if reattached else reloads(spec, ["xdp"], [])

    def choose(cases: Sequence[Case]) -> list[Case]:
        links = [case for case in cases if case.place.fits("LINK_*") or case.place.fits("*links*")]
        return [*spread(cases, 4), *spread(links, 4)]

    survived(sweep(spec, actions, choose=choose), 16 if reattached else 8, {"failed", "killed"})


@pytest.mark.privileged
def test_a_reload_is_cancelled_at_each_call_of_a_sample() -> None:
    """Before its commit it is undone, behind it it is done."""
    spec = NodeSpec("sweep-cancel", pods=1, devices=("eth0",))
    ends = {"cancelled", "succeeded"}
    survived(sweep(spec, reloads(spec, ["host"], []), faults=NO_ERRNO, choose=partial(spread, number=12)), 12, ends)


@pytest.mark.privileged
def test_which_state_a_kill_leaves_is_told() -> None:
    """Killed at the first call, at the filter when the policy program is new, and when all is done."""
    spec = NodeSpec("sweep-killed", pods=1)

    def choose(cases: Sequence[Case]) -> list[Case]:
        kills = [case for case in cases if case.fault == KILL]
        return [kills[0], *(case for case in kills if case.place.fits("RTM_NEWTFILTER *")), kills[-1]]

    result = sweep(spec, reloads(spec, ["pod-1"], []), choose=choose)
    assert [case.left for case in result.cases] == ["old", "mixed", "new"]
    assert result.to_json()["killed"] == {"old": 1, "mixed": 1, "new": 1}
    assert [case.wrong for case in result.cases] == [[], [], []]


@pytest.mark.privileged
def test_an_answer_of_netlink_that_is_lost_is_survived() -> None:
    """What was asked for is done; the rollback lists filters, by a socket whose last list was not read to its end."""
    spec, faults = NodeSpec("sweep-receives", pods=1), Faults(errnos_of, kill=False, receives=True)

    def choose(cases: Sequence[Case]) -> list[Case]:
        return list(spread([case for case in cases if case.place.pattern == RECEIVE], 8))

    result = sweep(spec, reloads(spec, ["pod-1"], []), faults=faults, choose=choose)
    survived(result, 8, {"failed"})
    assert "--calls netlink-answer --nth 1 --receives --errno ENOBUFS" in result.cases[0].command


def named(pattern: str) -> Callable[[Sequence[Case]], list[Case]]:
    return lambda cases: [case for case in cases if case.place.fits(pattern)]


@pytest.mark.privileged
def test_a_step_that_is_not_taken_back_is_found() -> None:
    """The object cannot be published, and the new program stays at the hook. The next case gets another node."""
    seen: list[Scenario] = []

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        if scenario not in seen:
            seen.append(scenario)
        scenario.agent.change = partial(
            steps.each, chosen=lambda _, step: step.name == "attach ingress", change=steps.kept
        )
        scenario.agent.reload("pod-1")

    spec = NodeSpec("sweep-of-fault")
    action = Action("reload of pod-1", reload)
    result = sweep(spec, [action], faults=Faults(first_errno_of), choose=named("link *"))
    case, killed = result.cases
    assert not result.holds
    assert case.ended.startswith("failed: ")
    assert any("filters differ" in what for what in case.wrong)
    assert (killed.ended, killed.survived, len(seen)) == ("killed", True, 2)


@pytest.mark.privileged
def test_a_process_that_dies_of_an_error_has_not_survived() -> None:
    """One that was not to be killed, by whatever it died."""
    here = os.getpid()

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        try:
            scenario.agent.reload("pod-1", cancel=cancel)
        except ReloadlabError:
            if os.getpid() != here:
                os.kill(os.getpid(), signal.SIGUSR2)
            raise

    spec = NodeSpec("sweep-crash", pods=1)
    result = sweep(spec, [Action("reload of pod-1", reload)], faults=Faults(first_errno_of), choose=named("link *"))
    case, killed = result.cases
    assert "was killed by SIGUSR2" in case.ended
    assert any("was killed by SIGUSR2" in what for what in case.wrong)
    assert (killed.ended, killed.survived) == ("killed", True)
    assert result.failed


@pytest.mark.privileged
def test_what_cannot_begin_any_more_is_told_and_the_rest_goes_on() -> None:
    """A case whose node cannot be prepared, and another action that fails without a fault."""
    (reload,) = reloads(spec := NodeSpec("sweep-unready", pods=1), ["pod-1"], [])
    prepared: list[int] = []

    def prepare(scenario: Scenario, cancel: threading.Event) -> None:
        prepared.append(1)
        # Twice to have everything compiled and to see the calls, once for each case.
        if len(prepared) == 3:
            raise ReloadlabError("not now")

    def refuse(scenario: Scenario, cancel: threading.Event) -> None:
        raise ReloadlabError("not at all")

    actions = [replace(reload, before=prepare), Action("refused", refuse)]
    result = sweep(spec, actions, faults=Faults(first_errno_of, kill=False), choose=lambda cases: cases[:2])
    first, second = result.cases
    assert (first.ended, first.wrong) == ("not reached", ["it could not go on: not now"])
    assert second.survived
    assert [violation.what for violation in result.findings] == ["refused failed without a fault: not at all"]


NO_KILL = Faults(first_errno_of, kill=False)


@pytest.mark.privileged
def test_without_cpu_for_the_traffic_nothing_is_said() -> None:
    """The cases are told all the same, and the result does not hold."""
    told: list[Case] = []
    spec, action = NodeSpec("sweep-starved", pods=1), Action("starved", starved)
    result = sweep(spec, [action], faults=NO_KILL, choose=named("link *"), on_case=told.append)
    assert told == result.cases
    assert [title(case) for case in result.cases if not case.survived] == []
    assert result.undecided.startswith("no verdict: the traffic got no CPU for ")
    assert (result.failed, result.holds) == (False, False)
    assert result.to_json()["undecided"] == result.undecided


@pytest.mark.privileged
def test_a_case_that_was_found_is_told_without_cpu_for_the_traffic() -> None:
    told: list[Case] = []
    here, done = os.getpid(), list[int]()

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        starved(scenario, cancel)
        if os.getpid() == here:
            done.append(1)
            # The first time is to have everything compiled, the second one follows the case.
            if len(done) == 2:
                raise ReloadlabError("not once more")

    spec = NodeSpec("sweep-found", pods=1)
    action = Action("starved", reload)
    result = sweep(spec, [action], faults=NO_KILL, choose=named("link *"), on_case=told.append)
    assert [case.wrong for case in told] == [["the next one failed: not once more"]]
    assert (result.failed, result.undecided) == (True, "")


def test_a_series_of_one_maps_keys_is_a_few_cases() -> None:
    calls = [Call(at, "MAP_UPDATE", f"cilium_ct4_global[0x{at:08x}]", "bpf", 1) for at in range(100)]
    calls += [Call(at, "MAP_LOOKUP", f"cilium_call_policy[{at}]", "bpf", 1) for at in range(100)]
    calls += [Call(at, "MAP_UPDATE", f"cilium_call_policy[{at}]", "bpf", 1) for at in range(5)]
    cases = cases_of(Action("x", lambda scenario, cancel: None), calls, NO_ERRNO)
    assert [(case.place.pattern, case.place.nth) for case in cases] == [
        *(("MAP_UPDATE cilium_ct4_global[*]", nth) for nth in (1, 2, 25, 50)),
        *(("MAP_LOOKUP cilium_call_policy[*]", nth) for nth in (1, 2, 25, 50)),
        *((f"MAP_UPDATE cilium_call_policy[{at}]", 1) for at in range(5)),
    ]
    assert cases[0].command == "reloadlab faults --calls 'MAP_UPDATE cilium_ct4_global[*]' --nth 1 --cancel"


@pytest.mark.privileged
def test_a_call_that_does_not_come_is_not_called_survived() -> None:
    spec = NodeSpec("sweep-of-nothing")
    never = Case("reload of pod-1", Place("MAP_UPDATE nothing", 1), KILL)
    result = sweep(spec, reloads(spec, ["pod-1"], []), choose=lambda cases: [never])
    assert never.ended == "not reached"
    assert not result.holds


@pytest.mark.parametrize(
    ("name", "subject", "only_adds"),
    [
        ("PROG_LOAD", "cil_from_contai", True),
        ("OBJ_PIN", "/run/x/bpf/tc/globals/m", True),
        ("MAP_LOOKUP", "cilium_call_policy[101]", True),
        ("MAP_UPDATE", "cilium_call_policy[101]", False),
        ("MAP_UPDATE", "cilium_calls_00101[7]", False),
        ("rename", "/run/x/m -> /run/x/m:pending", False),
        ("unlink", "/run/x/m:pending", False),
        ("RTM_NEWTFILTER", "lxc1 ingress", False),
        ("LINK_UPDATE", "TCX_INGRESS of interface 7", False),
        ("PROG_ATTACH", "", False),
        ("BPF_4711", "", False),
    ],
)
def test_what_packets_go_through_stays_as_it_was(name: str, subject: str, only_adds: bool) -> None:
    """At a call that is not known, and at whatever takes something away, it may not."""
    assert Call(1, name, subject, "bpf", 1).only_adds == only_adds


def test_patterns_fit_on_every_node() -> None:
    call = Call(1, "RTM_NEWTFILTER", "lxc965472bbb438 ingress", "sendto", 1)
    assert call.pattern == "RTM_NEWTFILTER * ingress"
    rename = Call(2, "rename", "/run/x/a/bpf/tc/globals/m -> /run/x/a/bpf/tc/globals/m:pending", "rename", 1)
    assert rename.pattern == "rename */bpf/tc/globals/m -> */bpf/tc/globals/m:pending"
    assert Call(3, "PROG_GET_FD_BY_ID", "4711", "bpf", 1).pattern == "PROG_GET_FD_BY_ID *"
    notes = Call(4, "openat", "/run/x/a/state/101/.connections.34m8ui8_", "openat", 1)
    assert notes.pattern == "openat */state/101/.connections.*"
    replaced = f"/run/x/a/bpf/tc/globals/cilium_lxc{RETIRED}888031"
    assert Call(5, "unlink", replaced, "unlink", 1).pattern == f"unlink */bpf/tc/globals/cilium_lxc{RETIRED}*"
    slot = Call(6, "MAP_UPDATE", "cilium_calls_00101[7]", "bpf", 1)
    assert Place(slot.pattern, 1).fits("MAP_UPDATE cilium_calls_00101[7]")
    assert Place(slot.pattern, 1).fits("MAP_UPDATE cilium_calls_*")
    assert not Place(slot.pattern, 1).fits("MAP_UPDATE cilium_calls_00101[8]")


@pytest.mark.parametrize(
    "options",
    [
        ["pod-1", "--with", "POLICY_MAP_SIZE=4096"],
        ["pod-1", "--reattach"],
        ["xdp", "--reattach", "--xdp", "native"],
        ["--switch"],
    ],
    ids=["migration", "attachment", "xdp", "switch"],
)
def test_the_printed_command_of_a_case_does_its_action_alone(options: list[str]) -> None:
    """What goes there and back has one name for each way, and one command."""

    def actions(words: Sequence[str]) -> list[Action]:
        parser = argparse.ArgumentParser()
        add_action_options(parser)
        args = parser.parse_args(words)
        check_actions(args)
        return actions_of(args, own_node(args, "alone"))

    there, back = actions(options)
    assert [each.arguments for each in actions(there.arguments)] == [there.arguments]
    assert [each.name for each in actions(there.arguments)] == [there.name]
    assert [each.name for each in actions(back.arguments)] == [back.name] != [there.name]


@pytest.mark.privileged
def test_a_case_alone_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["faults", "pod-1", "--calls", "OBJ_PIN *", "--nth", "1", "--errno", "ENOSPC", "--no-kill", "--json"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["cases"], document["survived"], document["failures"]) == (1, 1, [])
    assert f"1 of {document['possible']} cases in" in captured.err


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pod-9"], "no subject pod-9: there are host, health, pod-1, pod-2"),
        (["--errno", "ENOTHING"], "--errno ENOTHING: no such error"),
        (["--kill", "--errno", "ENOMEM"], "--kill means kills alone"),
        (["--cancel", "--errno", "ENOMEM"], "--cancel means cancellations alone"),
        (["--switch", "pod-1"], "--switch switches the whole node"),
        (["--life", "pod-1"], "no stage pod-1 in the life of a node; there are up, policy,"),
        (["--life", "--switch"], "--life is that of nodes with our programs"),
        (["--nth", "x"], "x"),
        (["pod-1", "--way", "back"], "--way is of what goes there and back: with --switch, --reattach or --with"),
        (["--switch", "--way", "forth"], "--way: no forth; it is there, back"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["faults", *argv], capsys)


@pytest.mark.privileged
def test_a_node_that_cannot_be_left_as_it_must_be_is_removed_and_the_rest_goes_on() -> None:
    """The engine of the traffic is gone, as one that the kernel has killed for want of memory."""
    (reload,) = reloads(spec := NodeSpec("sweep-unleft", pods=1), ["pod-1"], [])
    prepared: list[int] = []

    def prepare(scenario: Scenario, cancel: threading.Event) -> None:
        prepared.append(1)
        # Twice to have everything compiled and to see the calls, once for each case.
        if len(prepared) == 3:
            os.kill(scenario.traffic.pid, signal.SIGKILL)

    actions = [replace(reload, before=prepare)]
    result = sweep(spec, actions, faults=NO_KILL, choose=lambda cases: cases[:3])
    first, *others = result.cases
    assert [what.partition(":")[0] for what in first.wrong] == [
        "it could not go on",
        "the node could not be left as it must be",
    ]
    assert [title(case) for case in others if not case.survived] == []

"""Sweeps: our loader survives a failure at every call; a loader that does not is told, with how to see it again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from lab.cli.main import main
from lab.corpus import steps
from lab.gates.call import Call
from lab.node.topology import NodeSpec
from lab.proof.action import Action
from lab.proof.actions import reloads
from lab.proof.cases import KILL, Case, Faults, Place
from lab.proof.errnos import first_errno_of
from lab.proof.sweep import sweep
from lab.scenario.scenario import Scenario
from tests.lab.proof.refused import refused

SAMPLE = 40
"""Cases of about 320: the whole sweep is `reloadlab faults`."""


def spread(number: int, cases: Sequence[Case]) -> list[Case]:
    return [cases[at * len(cases) // number] for at in range(number)]


@pytest.mark.parametrize("subject", ["pod-1", "host"])
def test_a_sample_of_the_cases_is_survived(subject: str) -> None:
    spec = NodeSpec(f"sweep-{subject}", endpoint_routes=True)
    result = sweep(spec, reloads(spec, [subject], []), choose=partial(spread, SAMPLE))
    assert [case.title for case in result.cases if not case.survived] == []
    assert (result.findings, result.gaps) == ([], [])
    assert result.holds
    ends = {case.ended.partition(":")[0] for case in result.cases}
    assert {"failed", "killed"} <= ends
    assert len(result.cases) == SAMPLE


def named(pattern: str) -> Callable[[Sequence[Case]], list[Case]]:
    return lambda cases: [case for case in cases if case.place.fits(pattern)]


def test_a_step_that_is_not_taken_back_is_found() -> None:
    """The object cannot be published, and the new program stays at the hook."""

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.change = partial(
            steps.each, chosen=lambda _, step: step.name == "attach ingress", change=steps.kept
        )
        scenario.agent.reload("pod-1")

    spec = NodeSpec("sweep-of-fault")
    action = Action("reload of pod-1", reload)
    result = sweep(spec, [action], faults=Faults(first_errno_of, kill=False), choose=named("link *"))
    (case,) = result.cases
    assert not result.holds
    assert case.ended.startswith("failed: ")
    assert any("filters differ" in what for what in case.wrong)


def test_a_call_that_does_not_come_is_not_called_survived() -> None:
    spec = NodeSpec("sweep-of-nothing")
    never = Case("reload of pod-1", Place("MAP_UPDATE nothing", 1), KILL)
    result = sweep(spec, reloads(spec, ["pod-1"], []), choose=lambda cases: [never])
    assert never.ended == "not reached"
    assert not result.holds


def test_patterns_fit_on_every_node() -> None:
    call = Call(1, "RTM_NEWTFILTER", "lxc965472bbb438 ingress", "sendto", 1)
    assert call.pattern == "RTM_NEWTFILTER * ingress"
    rename = Call(2, "rename", "/run/x/a/bpf/tc/globals/m -> /run/x/a/bpf/tc/globals/m:pending", "rename", 1)
    assert rename.pattern == "rename */bpf/tc/globals/m -> */bpf/tc/globals/m:pending"
    assert Call(3, "PROG_GET_FD_BY_ID", "4711", "bpf", 1).pattern == "PROG_GET_FD_BY_ID *"
    slot = Call(4, "MAP_UPDATE", "cilium_calls_00101[7]", "bpf", 1)
    assert Place(slot.pattern, 1).fits("MAP_UPDATE cilium_calls_00101[7]")
    assert Place(slot.pattern, 1).fits("MAP_UPDATE cilium_calls_*")
    assert not Place(slot.pattern, 1).fits("MAP_UPDATE cilium_calls_00101[8]")


def test_a_case_alone_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["faults", "pod-1", "--calls", "OBJ_PIN *", "--nth", "1", "--errno", "ENOSPC", "--no-kill", "--json"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["cases"], document["survived"], document["failures"]) == (1, 1, [])
    assert "1 case in" in captured.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pod-9"], "no endpoint pod-9"),
        (["--errno", "ENOTHING"], "--errno ENOTHING: no such error"),
        (["--kill", "--errno", "ENOMEM"], "--kill means kills alone"),
        (["--nth", "x"], "x"),
    ],
)
def test_wrong_calls(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(["faults", *argv], capsys)

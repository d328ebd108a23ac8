"""Two reloads at once: nothing is split or lost, and what a faulty loader makes of it is told."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from datapath.errors import ReloadlabError
from datapath.kernel.map import open_pin
from datapath.kernel.pins import RETIRED
from lab.cli.proofs import spread
from lab.loaders.command import LoaderCommand, find_loader
from lab.node.topology import NodeSpec
from lab.proof.action import Action
from lab.proof.actions import loaded_by, pairs
from lab.proof.cases import Place
from lab.proof.two import Meeting, prove_two
from lab.scenario.scenario import Scenario
from lab.system.launch import module_argv
from tests.lab.proof.refused import refused
from tests.lab.proof.starved import starved

pytestmark = pytest.mark.privileged

SAMPLE = 2
"""Meetings of about 60: all of them are `reloadlab prove --two`."""


def test_two_reloads_at_once_lose_no_packet() -> None:
    """Of two pods, and of one twice: the second waits for the first."""
    spec = NodeSpec("two-at-once", pods=2)
    wanted = [pair for second in ("pod-2", "pod-1") for pair in pairs(spec, ["pod-1", second], [])]
    result = prove_two(spec, wanted, choose=partial(spread, number=SAMPLE))
    assert [(meeting.title, meeting.wrong) for meeting in result.meetings if meeting.wrong] == []
    assert (result.findings, result.gaps) == ([], [])
    assert result.holds
    assert len(result.meetings) == 2 * (SAMPLE + 1)
    assert result.to_json()["waited"] > 0


def test_what_a_reload_does_with_a_map_that_the_other_uses_as_well() -> None:
    """Alone it lets go of the map that it has replaced; while the other's programs use that, the pin stays."""
    spec = NodeSpec("two-and-a-map", pods=1)
    wanted = pairs(spec, ["pod-1", "host"], [("ENDPOINTS_MAP_SIZE", "4096")])
    chosen: list[Place] = []

    def of_the_replaced_map(places: Sequence[Place]) -> Sequence[Place]:
        chosen.extend(found := [place for place in places if RETIRED in place.pattern])
        return found

    result = prove_two(spec, wanted, choose=of_the_replaced_map)
    assert [(meeting.title, meeting.wrong) for meeting in result.meetings if meeting.wrong] == []
    assert result.holds
    assert chosen


def test_two_loaders_that_are_processes_of_their_own() -> None:
    """Each reload has one; its calls are in lockstep with those of the other."""
    spec = NodeSpec("two-loaders", pods=2)
    wanted, loader = (
        pairs(spec, ["pod-1", "pod-2"], []),
        LoaderCommand("ours", tuple(module_argv("lab.loaders.pipeline"))),
    )
    result = prove_two(spec, wanted, choose=lambda places: places[-1:], loader=loader)
    assert [(meeting.title, meeting.wrong) for meeting in result.meetings if meeting.wrong] == []
    assert result.holds
    assert len(result.meetings) == 2


def test_two_loaders_one_of_each() -> None:
    """The first reload is our own pipeline's, the second one that of a process that speaks the protocol."""
    spec, loader = NodeSpec("one-of-each", pods=1), LoaderCommand("other", tuple(module_argv("lab.loaders.pipeline")))
    (first, second), *_ = pairs(spec, ["pod-1"], [])
    result = prove_two(spec, [(first, loaded_by(second, loader))], choose=lambda places: places[-1:])
    what = "reload of pod-1 and reload of pod-1 by other"
    assert [(meeting.what, meeting.wrong) for meeting in result.meetings] == [(what, []), (what, [])]
    assert result.holds


def test_a_calls_map_that_the_loader_beside_may_share_is_a_gap() -> None:
    """It promises none of its own, whatever the loader of the node does."""
    spec, loader = (
        NodeSpec("sharing-beside", pods=1),
        LoaderCommand("other", tuple(module_argv("tests.lab.loaders.sharing"))),
    )
    (first, second), *_ = pairs(spec, ["pod-1"], [])
    result = prove_two(spec, [(first, loaded_by(second, loader))], choose=lambda places: [])
    said = [*result.findings, *(wrong for meeting in result.meetings for wrong in meeting.wrong)]
    assert [str(each) for each in said if "uses the calls map of" in str(each)] == []
    assert "not supported by loader pipeline: calls maps of its own for each load (invariant 4)" in result.gaps


def test_ours_and_tc_on_one_node() -> None:
    """tc names its filters otherwise, and pins the buffers, of which ours has its own: neither is a finding."""
    spec, tc = NodeSpec("ours-and-tc", pods=1), find_loader("tc")
    (first, second), *_ = pairs(spec, ["pod-1"], [])

    def choose(places: Sequence[Place]) -> Sequence[Place]:
        """Return the one at which ours has no lock yet: tc comes first."""
        return [place for place in places if place.fits("openat */mode.lock")]

    result = prove_two(spec, [(first, loaded_by(second, tc))], choose=choose)
    assert [(meeting.title, meeting.wrong) for meeting in result.meetings if meeting.wrong] == []
    assert result.holds
    assert result.possible > len(result.meetings) == 2


def test_two_reloads_that_replace_a_map_of_the_node() -> None:
    """Each finds the map that the other has made, not one of its own."""
    spec = NodeSpec("two-migrations", pods=2)

    def choose(places: Sequence[Place]) -> Sequence[Place]:
        return [place for place in places if place.fits("*globals/cilium_lxc*")][:SAMPLE]

    result = prove_two(spec, pairs(spec, ["pod-1", "host"], [("ENDPOINTS_MAP_SIZE", "4096")]), choose=choose)
    assert [(meeting.title, meeting.wrong) for meeting in result.meetings if meeting.wrong] == []
    assert result.holds
    # To the other build and back, each at the chosen calls and in turns.
    assert len(result.meetings) == 2 * (SAMPLE + 1)


def test_a_map_of_its_own_is_found() -> None:
    """The pin of a map is replaced behind the back of a reload that has opened it."""

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.reload("pod-1", cancel=cancel)

    def unpin(scenario: Scenario, cancel: threading.Event) -> None:
        path = scenario.agent.config.globals / "cilium_metrics"
        open_pin(path).close()
        path.rename(path.with_name("aside"))
        scenario.agent.reload("health", cancel=cancel)
        path.with_name("aside").unlink()

    spec = NodeSpec("two-split", pods=1)
    pair = (Action("reload", reload), Action("unpin", unpin))
    result = prove_two(spec, [pair], choose=lambda places: [p for p in places if p.pattern.startswith("PROG_LOAD")][:1])
    assert not result.holds
    document = result.to_json()
    assert json.loads(json.dumps(document)) == document
    said = [what for failure in document["failures"] for what in failure["wrong"]]
    assert any("uses a map cilium_metrics" in what and "not the pinned one" in what for what in said)


def test_what_cannot_begin_is_told_and_the_rest_goes_on() -> None:
    """A meeting whose node cannot be prepared, and another pair that fails alone."""
    prepared: list[int] = []

    def prepare(scenario: Scenario, cancel: threading.Event) -> None:
        prepared.append(1)
        # Twice to see the calls, once for each meeting.
        if len(prepared) == 3:
            raise ReloadlabError("not now")

    def refuse(scenario: Scenario, cancel: threading.Event) -> None:
        raise ReloadlabError("not at all")

    spec = NodeSpec("two-unready", pods=1)
    (first, second), *_ = pairs(spec, ["pod-1", "host"], [])
    wanted = [(replace(first, before=prepare), second), (Action("refused", refuse), second)]
    result = prove_two(spec, wanted, choose=lambda places: places[:1])
    assert [meeting.wrong for meeting in result.meetings] == [["it could not go on: not now"], []]
    assert [violation.what for violation in result.findings] == ["refused failed alone: not at all"]


def test_what_was_found_is_told_although_the_node_cannot_be_left_as_it_must_be() -> None:
    """The engine of the traffic is gone, as one that the kernel has killed for want of memory."""
    prepared: list[int] = []

    def prepare(scenario: Scenario, cancel: threading.Event) -> None:
        prepared.append(1)
        if len(prepared) == 3:
            os.kill(scenario.traffic.pid, signal.SIGKILL)

    spec = NodeSpec("two-unleft", pods=1)
    (first, second), *_ = pairs(spec, ["pod-1", "host"], [])
    result = prove_two(spec, [(replace(first, before=prepare), second)], choose=lambda places: [])
    (meeting,) = result.meetings
    assert meeting.wrong[0].startswith("it could not go on: lab.traffic.engine: ")
    assert any(what.what.startswith("the node could not be left as it must be: ") for what in result.findings)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--two", "pod-1", "pod-2", "host"], "--two takes one SUBJECT"),
        (["--two", "--switch"], "--two takes one SUBJECT"),
        (["--two", "--rounds", "2"], "--two takes one SUBJECT"),
        (["--two", "--reattach"], "--two takes one SUBJECT"),
        (["--reattach", "--switch"], "--reattach is what these reloads do"),
        (["--two", "pod-9"], "no subject pod-9"),
        (["--sample", "3"], "with --two"),
        (["--calls", "*"], "with --two"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["prove", *argv], capsys)


def test_a_pattern_that_no_call_fits_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Else it would be a proof of next to nothing, and green."""
    assert "no call fits nix *" in refused(["prove", "--two", "pod-1", "--calls", "nix *"], capsys)


def test_without_cpu_for_the_traffic_nothing_is_said() -> None:
    """The meetings are told all the same, and the result does not hold."""
    told: list[Meeting] = []
    pair = (Action("one", starved), Action("other", starved))
    result = prove_two(NodeSpec("two-starved", pods=1), [pair], choose=lambda places: [], on_meeting=told.append)
    assert (told, [meeting.wrong for meeting in told]) == (result.meetings, [[]])
    assert result.undecided.startswith("no verdict: the traffic got no CPU for ")
    assert (result.failed, result.holds) == (False, False)

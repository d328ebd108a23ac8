"""A reload ends entirely old or entirely new, wherever it fails: every step of every plan, before it and after it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from datapath.errors import Cancelled, LinkNotFound
from datapath.kernel.pins import Pin
from datapath.reload.outcome import FailedReload, Outcome
from datapath.reload.step import Plan, Step
from datapath.reload.transaction import Observers, RollbackFailed
from datapath.reload.workspace import Workspace
from lab.scenario.gate import Gate
from tests.datapath import support
from tests.datapath.support import Injected, Rig
from tests.exhaustive import EXHAUSTIVE

pytestmark = pytest.mark.privileged


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=1, tunnel=True, devices=("eth0",)) as made:
        yield made


@dataclass(frozen=True)
class Noted(Step):
    """Writes down what is done to it; `fail` and `fail_undo` raise there."""

    log: list[str]
    fail: bool = False
    fail_undo: BaseException | None = None

    @property
    def name(self) -> str:
        return "noted"

    def describe(self) -> str:
        return "write it down"

    def apply(self, work: Workspace) -> None:
        self.log.append(f"do {self.target}")
        if self.fail:
            raise Injected(f"{self.target} failed")

    def undo(self, work: Workspace) -> None:
        self.log.append(f"undo {self.target}")
        if self.fail_undo is not None:
            raise self.fail_undo


def plan(*steps: Step) -> Plan:
    return Plan("test", 999, 1, steps)


def test_steps_are_applied_in_order_and_timed(rig: Rig) -> None:
    log: list[str] = []
    outcome = rig.loader.apply(plan(Noted("a", log), Noted("b", log)))
    assert log == ["do a", "do b"]
    assert [(span.step, span.target) for span in outcome.spans] == [("noted", "a"), ("noted", "b")]
    first, second = (span.work for span in outcome.spans)
    assert first.start_ns <= first.end_ns <= second.start_ns <= second.end_ns
    assert first.tid == threading.get_native_id()
    assert outcome.duration_ns == second.end_ns - first.start_ns
    assert outcome.to_json()["spans"][0]["duration_ns"] == first.end_ns - first.start_ns


def test_undone_in_reverse_the_failed_step_included(rig: Rig) -> None:
    """A step may fail half-way: it is undone as well. Those that were not begun are not."""
    log: list[str] = []
    with pytest.raises(Injected, match="b failed"):
        rig.loader.apply(plan(Noted("a", log), Noted("b", log, fail=True), Noted("c", log)))
    assert log == ["do a", "do b", "undo b", "undo a"]


def test_a_failed_reload_tells_its_steps_and_its_rollback(rig: Rig) -> None:
    """The step that failed is the last one, and the rollback comes after it."""
    heard: list[FailedReload] = []
    steps = (Noted("a", []), Noted("b", [], fail=True), Noted("c", []))
    with pytest.raises(Injected):
        rig.loader.apply(plan(*steps), on_failure=heard.append)
    (failed,) = heard
    assert (failed.subject, failed.generation, failed.error) == ("test", 1, "b failed")
    assert [span.target for span in failed.spans] == ["a", "b"]
    assert failed.rollback is not None
    assert failed.spans[1].work.end_ns <= failed.rollback.start_ns <= failed.rollback.end_ns


def test_a_reload_that_fails_after_its_commit_is_not_rolled_back(rig: Rig) -> None:
    heard: list[FailedReload] = []
    made = rig.plan("pod-1", routes=True)
    with pytest.raises(Injected):
        rig.loader.apply(replace(made, steps=(*made.steps, Noted("late", [], fail=True))), on_failure=heard.append)
    (failed,) = heard
    assert failed.rollback is None
    assert [span.step for span in failed.spans][-2:] == ["commit", "noted"]


def test_a_reload_that_succeeds_is_no_failure(rig: Rig) -> None:
    heard: list[FailedReload] = []
    rig.loader.apply(plan(Noted("a", [])), on_failure=heard.append)
    assert heard == []


def test_several_observers_are_called_in_their_order(rig: Rig) -> None:
    seen: list[str] = []
    first = Gate(lambda step, _: seen.append(f"first {step.target}"), before="noted", after="noted")
    second = Gate(lambda step, _: seen.append(f"second {step.target}"), before="noted")
    rig.loader.apply(plan(Noted("a", seen)), observer=Observers((first, second)))
    assert seen == ["first a", "second a", "do a", "first a"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "no space", "b"), ValueError("name takes 64 bytes"), KeyError("b"), AssertionError()],
    ids=lambda error: type(error).__name__,
)
def test_an_undo_that_fails_does_not_stop_the_others(rig: Rig, error: Exception) -> None:
    """Whatever it raises."""
    log: list[str] = []
    steps = (Noted("a", log), Noted("b", log, fail_undo=error), Noted("c", log, fail=True))
    with pytest.raises(RollbackFailed, match="c failed; and the rollback is incomplete: noted b") as info:
        rig.loader.apply(plan(*steps))
    assert log[-3:] == ["undo c", "undo b", "undo a"]
    assert isinstance(info.value.cause, Injected)
    assert info.value.__cause__ is info.value.cause
    assert [(step.target, failure) for step, failure in info.value.failures] == [("b", error)]


def test_ctrl_c_stays_ctrl_c_when_the_rollback_is_incomplete(rig: Rig) -> None:
    """Nobody may take it for an error of one endpoint and go on with the next; what is not undone is noted on it."""
    log: list[str] = []

    def interrupt(step: Step, work: Workspace) -> None:
        raise KeyboardInterrupt

    gate = Gate(interrupt, after="noted")
    with pytest.raises(KeyboardInterrupt) as info:
        rig.loader.apply(plan(Noted("a", log, fail_undo=OSError(28, "no space"))), observer=gate)
    assert log == ["do a", "undo a"]
    assert "rollback is incomplete: noted a" in str(getattr(info.value, "__notes__", info.value))


def test_an_undo_that_is_interrupted_does_not_stop_the_others(rig: Rig) -> None:
    """The interrupt goes on afterwards, and says what is not undone."""
    log: list[str] = []
    steps = (Noted("a", log), Noted("b", log, fail_undo=KeyboardInterrupt()), Noted("c", log, fail=True))
    with pytest.raises(KeyboardInterrupt) as info:
        rig.loader.apply(plan(*steps))
    assert log[-3:] == ["undo c", "undo b", "undo a"]
    assert "rollback is incomplete: noted b: KeyboardInterrupt" in str(getattr(info.value, "__notes__", info.value))


def test_a_second_ctrl_c_waits_for_the_rollback(rig: Rig) -> None:
    """It is delivered when all is undone, whatever made the reload fail; a rollback stopped half-way mixes programs."""
    for _ in range(2):
        rig.reload("pod-1", routes=True)
    before = rig.state()
    events: list[str] = []

    @dataclass(frozen=True)
    class Impatient(Noted):
        def undo(self, work: Workspace) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            events.append("after the second Ctrl-C")

    made = rig.plan("pod-1", routes=True)
    number = [step.name for step in made.steps].index("commit")
    steps = (*made.steps[:number], Impatient("user", []), Noted("failing", [], fail=True), *made.steps[number:])
    with pytest.raises(KeyboardInterrupt) as info:
        rig.loader.apply(replace(made, steps=steps))
    assert isinstance(info.value.__cause__, Injected)
    assert events == ["after the second Ctrl-C"]
    assert before.differences(rig.state()) == []


@pytest.mark.parametrize("moment", ["monotonic_ns", "getsignal", "getsignal and undo"])
def test_a_second_ctrl_c_right_before_the_rollback_does_not_skip_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It comes when the reload has failed, before its signals are held back; a third one waits for the rollback."""
    for _ in range(2):
        rig.reload("pod-1", routes=True)
    before, sent = rig.state(), list[str]()
    module, call = (time, "monotonic_ns") if moment == "monotonic_ns" else (signal, "getsignal")
    genuine = getattr(module, call)

    @dataclass(frozen=True)
    class Interrupted(Noted):
        def apply(self, work: Workspace) -> None:
            raise KeyboardInterrupt

        def undo(self, work: Workspace) -> None:
            if "undo" in moment:
                os.kill(os.getpid(), signal.SIGINT)

    def interrupt(*args: Any) -> Any:
        # In the rollback, and once.
        if not sent and isinstance(sys.exception(), KeyboardInterrupt) and sys._getframe(1).f_code.co_name in ROLLBACK:
            sent.append(moment)
            os.kill(os.getpid(), signal.SIGINT)
        return genuine(*args)

    monkeypatch.setattr(module, call, interrupt)
    made = rig.plan("pod-1", routes=True)
    number = [step.name for step in made.steps].index("commit")
    steps = (*made.steps[:number], Interrupted("user", []), *made.steps[number:])
    with pytest.raises(KeyboardInterrupt):
        rig.loader.apply(replace(made, steps=steps))
    monkeypatch.undo()
    assert sent == [moment]
    assert before.differences(rig.state()) == []


ROLLBACK = ("apply", "signals_held_back")
"""The functions that call something before the rollback is safe from signals."""


def test_cancelled_before_it_began(rig: Rig) -> None:
    log: list[str] = []
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled, match="cancelled before: noted a"):
        rig.loader.apply(plan(Noted("a", log)), cancel=cancel)
    assert log == []


SUBJECTS = [("pod-1", False), ("pod-1", True), ("host", False), ("overlay", False)]
subjects = pytest.mark.parametrize(
    ("subject", "routes"), SUBJECTS, ids=["pod", "pod with endpoint routes", "host", "overlay"]
)
loads = pytest.mark.parametrize("first", [True, False], ids=["first load", "reload"])


def some(steps: int, first: int) -> range:
    """Return every second step, from the first or the second on; with EXHAUSTIVE all.

    What is after a step is before the next one: two tests that begin at different steps have all places between steps.
    """
    return range(steps) if EXHAUSTIVE else range(first, steps, 2)


def prepare(rig: Rig, subject: str, routes: bool, first: bool) -> int:
    """Bring the node into its state before the failing reloads; return the number of steps of the plan."""
    if not first:
        # The second load opens what the first has created: from here on the descriptors kept are the same.
        for _ in range(2):
            rig.reload(subject, routes=routes)
    return len(rig.plan(subject, routes=routes).steps)


def check(rig: Rig, subject: str, routes: bool) -> None:
    """The node is entirely new: a reload has ended, and nothing is left of the one before."""
    assert rig.leftovers() == []
    assert rig.dead_calls() == []
    plan = rig.plan(subject, routes=routes)
    outcome = rig.loader.apply(plan)
    assert outcome.generation == plan.generation
    assert rig.leftovers() == []
    assert rig.dead_calls() == []


def fails(rig: Rig, subject: str, routes: bool, where: str, gate: Gate, error: type[BaseException]) -> list[str]:
    """Reload with a gate that must make it fail; return what is not as before."""
    before = rig.state()
    try:
        rig.reload(subject, routes=routes, observer=gate)
    except error:
        return [f"{where}: {what}" for what in before.differences(rig.state())]
    return [f"{where}: no {error.__name__}"]


@loads
@subjects
def test_failure_before_each_step(rig: Rig, subject: str, routes: bool, first: bool) -> None:
    """Before every second one; after the others it is the same place: test_failure_after_each_step."""
    wrong = []
    for number in some(prepare(rig, subject, routes, first), 0):
        gate = Gate(support.inject, before="*", nth=number + 1)
        wrong += fails(rig, subject, routes, f"before step {number}", gate, Injected)
    assert wrong == []
    check(rig, subject, routes)


@loads
@subjects
def test_failure_after_each_step(rig: Rig, subject: str, routes: bool, first: bool) -> None:
    """After the commit there is no way back: the old program array may be empty. The reload fails, and stays.

    After every second one: right before those that test_failure_before_each_step leaves out.
    """
    wrong = []
    last = prepare(rig, subject, routes, first) - 1
    for number in some(last, 0):
        gate = Gate(support.inject, after="*", nth=number + 1)
        wrong += fails(rig, subject, routes, f"after step {number}", gate, Injected)
    assert wrong == []
    committed = rig.plan(subject, routes=routes)
    with pytest.raises(Injected, match="at commit"):
        rig.loader.apply(committed, observer=Gate(support.inject, after="*", nth=last + 1))
    check(rig, subject, routes)


@pytest.mark.parametrize("first", [True, False], ids=["from off to on", "from on to off"])
def test_failure_of_a_toggle_at_each_step(rig: Rig, first: bool) -> None:
    """Egress program and routes come or go with the mode: they must not when the reload fails."""
    for _ in range(2):
        rig.reload("pod-1", routes=not first)
    wrong = []
    for number in some(len(rig.plan("pod-1", routes=first).steps) - 1, 0):
        for when in ("before", "after"):
            step = {when: "*"}
            gate = Gate(support.inject, before=step.get("before"), after=step.get("after"), nth=number + 1)
            wrong += fails(rig, "pod-1", first, f"{when} step {number}", gate, Injected)
    assert wrong == []
    check(rig, "pod-1", first)


@loads
@subjects
def test_cancelled_after_each_step(rig: Rig, subject: str, routes: bool, first: bool) -> None:
    """After every second one when it is a first load, after the others when it is not; always after the last."""
    wrong = []
    last = prepare(rig, subject, routes, first) - 1
    for number in (*some(last, first), last):
        cancel = threading.Event()
        gate = Gate(lambda _, __, event=cancel: event.set(), after="*", nth=number + 1)  # type: ignore[misc]
        before = rig.state()
        plan = rig.plan(subject, routes=routes)
        if number == last:
            rig.loader.apply(plan, observer=gate, cancel=cancel)  # too late: it is done
            continue
        with pytest.raises(Cancelled, match="cancelled before: " + plan.steps[number + 1].name):
            rig.loader.apply(plan, observer=gate, cancel=cancel)
        wrong += [f"after step {number}: {what}" for what in before.differences(rig.state())]
    assert wrong == []
    check(rig, subject, routes)


@loads
@subjects
def test_ctrl_c_at_each_step(rig: Rig, subject: str, routes: bool, first: bool) -> None:
    def interrupt(step: Step, work: Workspace) -> None:
        raise KeyboardInterrupt

    wrong = []
    steps = prepare(rig, subject, routes, first)
    for number in some(steps, not first):
        gate = Gate(interrupt, before="*", nth=number + 1)
        wrong += fails(rig, subject, routes, f"before step {number}", gate, KeyboardInterrupt)
    assert wrong == []
    check(rig, subject, routes)


def test_ctrl_c_inside_a_step(rig: Rig) -> None:
    """In the middle of the migration, while the control plane fills a map."""
    for _ in range(2):
        rig.reload("pod-1")
    before = rig.state()
    rig.configure(defines=(("POLICY_VALUE_PAD", "1"),))
    calls: list[str] = []

    def interrupt(new: object) -> None:
        calls.append("fill")
        raise KeyboardInterrupt

    rig.loader._on_new_map = interrupt
    with pytest.raises(KeyboardInterrupt):
        rig.reload("pod-1")
    assert calls == ["fill"]
    assert before.differences(rig.state()) == []


def test_ctrl_c_within_the_commit_waits_until_all_is_let_go(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new programs run, and nothing is undone any more: what was replaced would stay."""
    for _ in range(2):
        rig.reload("pod-1")
    finalize = Pin.finalize

    def interrupted(pin: Pin) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        finalize(pin)

    with monkeypatch.context() as patched:
        patched.setattr(Pin, "finalize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rig.reload("pod-1")
    assert rig.leftovers() == []
    assert list(rig.config.state.rglob("*.o.*")) == []
    assert rig.reload("pod-1").warnings == ()


def remove_link(rig: Rig, name: str) -> Callable[[Step, Workspace], None]:
    def remove(step: Step, work: Workspace) -> None:
        support.ip(rig.config.netns, "link", "del", name)

    return remove


@pytest.mark.parametrize(
    ("before", "routes"),
    [(False, False), (True, True), (False, True), (True, False)],
    ids=["routes off", "routes on", "from off to on", "from on to off"],
)
def test_pod_that_disappears_at_each_step(templates: Path, before: bool, routes: bool) -> None:
    """Its interface takes filters and routes with it. The reload fails, clearly, and everything else is as before.

    A pod whose interface went after the last look at it is reloaded in vain, which is no error. Each way has every
    second step, the way that is alike those between, and all have the last.
    """
    wrong: list[str] = []
    with support.rig(templates, pods=0) as rig:
        last = len(_pod_plan(rig, routes).steps) - 1
        for number in (*some(last, before), last):
            pod = f"gone-{number}"
            rig.node.add_pod(pod)
            for _ in range(2):
                rig.reload(pod, routes=before)
            ifname = rig.node.pod(pod).ifname
            then = rig.state()
            name = rig.plan(pod, routes=routes).steps[number].name
            gate = Gate(remove_link(rig, ifname), before="*", nth=number + 1)
            try:
                outcome: Outcome | None = rig.reload(pod, routes=routes, observer=gate)
            except LinkNotFound as error:
                outcome = None
                if error.ifname != ifname:
                    wrong.append(f"{name}: {error}")
            if (outcome is not None) != (name == "commit"):
                wrong.append(f"{name}: {outcome}")
            now = rig.state()
            if outcome is None and then.snapshot.datapath()[1:5] != now.snapshot.datapath()[1:5]:
                wrong.append(f"{name}: {then.differences(now)}")
            wrong += [f"{name}: {left}" for left in rig.leftovers()]
            rig.node.remove_pod(pod)
    assert wrong == []


def _pod_plan(rig: Rig, routes: bool) -> Plan:
    rig.node.add_pod("probe")
    plan = rig.plan("probe", routes=routes)
    rig.node.remove_pod("probe")
    return plan


def test_device_that_disappears_between_plan_and_attach(rig: Rig) -> None:
    rig.reload("host")
    rig.reload("host")
    before = rig.state()
    gate = Gate(remove_link(rig, "eth0"), before="attach egress", target="eth0")
    with pytest.raises(LinkNotFound, match="interface eth0 does not exist"):
        rig.reload("host", observer=gate)
    now = rig.state()
    gone = {place: found for place, found in before.snapshot.filters.items() if place[0] == "eth0"}
    assert now.snapshot.filters == {p: f for p, f in before.snapshot.filters.items() if p not in gone}
    assert before.snapshot.datapath()[1:5] == now.snapshot.datapath()[1:5]
    assert rig.leftovers() == []


def test_an_interface_of_somebody_elses_may_disappear(rig: Rig) -> None:
    """The host's plan clears interfaces that are no devices; that one of them is gone meanwhile is what it wants."""
    support.ip(rig.config.netns, "link", "add", "tmp4711", "type", "bridge")
    plan = rig.plan("host")
    assert ("detach ingress", "tmp4711") in [step.key for step in plan.steps]
    support.ip(rig.config.netns, "link", "del", "tmp4711")
    rig.loader.apply(plan)
    assert rig.leftovers() == []

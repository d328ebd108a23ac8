"""Two reloads at once on one node, by two processes, in lockstep: what one has half done, the other meets.

One stays at a call until the other has come to its end, or waits for it; and both make their calls in turns. After each
such meeting both have succeeded, their programs use the maps that are pinned, no pin is left over, and packets of every
flow are answered. What else does not hold is found at the end.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from datapath.base.mapnames import BUFFERS
from datapath.errors import BpfError, Cancelled, ReloadlabError
from datapath.kernel import bpf
from datapath.kernel.inventory import reach
from datapath.reload.outcome import Outcome
from lab.gates.call import Call
from lab.gates.lockstep import InTurns, Lockstep, Order, Within
from lab.gates.supervisor import Decide
from lab.node.topology import NodeSpec
from lab.proof.action import RATE, Action, do_gated
from lab.proof.cases import Place, note_findings, places_of
from lab.proof.settling import Settler
from lab.proof.watched import conclude, unanswered
from lab.scenario.scenario import Scenario
from lab.watch import metrics
from lab.watch.checks.hooks import check_hooks
from lab.watch.checks.mixed_loads import check_mixed_loads
from lab.watch.checks.pins import check_pins
from lab.watch.snapshot import Snapshot, take
from lab.watch.violation import Violation

Pair = tuple[Action, Action]
"""What is done at once: the first stays at a call while the second goes on."""


@dataclass(slots=True)
class Meeting:
    """Two actions, the first of which was stopped at a place; None: both made their calls in turns.

    `wrong` is what does not hold. `start_ns` is when it began (CLOCK_MONOTONIC). `waited`: one of them waited for the
    other, which went on though it was not its turn.
    """

    what: str
    place: Place | None
    wrong: list[str] = field(default_factory=list)
    start_ns: int = 0
    waited: bool = False

    @property
    def title(self) -> str:
        where = "in turns" if self.place is None else f"at {self.place.pattern} ({self.place.nth})"
        return f"{self.what}, {where}"


@dataclass(frozen=True, slots=True)
class Meetings:
    """All meetings that came about, what does not hold and belongs to none of them, and what could not be watched.

    `possible` is how many meetings there are, of which these were chosen.
    `blind` says why the traffic could have seen nothing at all; empty if it could.
    """

    meetings: Sequence[Meeting]
    findings: Sequence[Violation]
    gaps: Sequence[str]
    seconds: float
    possible: int
    blind: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.findings) or any(meeting.wrong for meeting in self.meetings)

    @property
    def undecided(self) -> str:
        """Why nothing can be said, although nothing was found; empty if something can."""
        return "" if self.failed else self.blind

    @property
    def holds(self) -> bool:
        return not self.failed and not self.undecided

    @property
    def waited(self) -> int:
        """At how many meetings one waited for the other."""
        return sum(meeting.waited for meeting in self.meetings)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object: the number of `meetings`, and the `failures` among them."""
        return {
            "meetings": len(self.meetings),
            "possible": self.possible,
            "waited": self.waited,
            "failures": [{"what": each.title, "wrong": each.wrong} for each in self.meetings if each.wrong],
            "findings": [str(violation) for violation in self.findings],
            "gaps": list(self.gaps),
            "undecided": self.undecided,
            "seconds": round(self.seconds, 3),
        }


class Two:
    """Has pairs of actions meet on a scenario's node."""

    def __init__(self, scenario: Scenario, cancel: threading.Event | None = None) -> None:
        self._scenario = scenario
        self._cancel = cancel
        self._settler = Settler()
        self._first = metrics.read(scenario.node).hits

    def places(self, pair: Pair) -> list[Place]:
        """Return the calls of the first action that change something, where both are to be done; it is done twice."""
        found: list[Call] = []
        first, second = pair
        for action in pair:
            action.prepare(self._scenario)
        first.do(self._scenario, self._cancel or threading.Event())
        # In a process of its own, as when they meet: it may be another loader's.
        self._done(second, lambda call: None)
        for action in pair:
            action.prepare(self._scenario)
        self._done(first, found.append)
        return [place for call, place in places_of(found) if call.changes]

    def _done(self, action: Action, decide: Decide) -> None:
        """Do an action in a process of its own, and have each call decided on."""
        do_gated(self._scenario, action, decide, cancel=self._cancel, look_ups=False, forked=True)

    def meet(self, pair: Pair, meeting: Meeting) -> None:
        """Do both at once, and note what does not hold."""
        meeting.start_ns = time.monotonic_ns()
        try:
            self._meet(pair, meeting)
        except Cancelled:
            raise
        except ReloadlabError as error:
            meeting.wrong.append(f"it could not go on: {error}")

    def _meet(self, pair: Pair, meeting: Meeting) -> None:
        scenario = self._scenario
        metrics.forget_hits(scenario.node, keep=self._first)
        counted = metrics.read(scenario.node)
        for action in pair:
            action.prepare(scenario)
        done = len(scenario.outcomes)
        meeting.start_ns = time.monotonic_ns()
        order = self._order(meeting)
        lockstep = Lockstep(order)
        self._at_once(pair, lockstep, meeting)
        meeting.waited = lockstep.passed > 0
        if isinstance(order, Within) and not order.reached:
            meeting.wrong.append("the call did not come")
        self._push(meeting, "not answered afterwards")
        now = take(scenario.node)
        meeting.wrong += map(str, check_hooks(scenario.agent, now))
        meeting.wrong += map(str, check_pins(scenario.agent, now))
        meeting.wrong += _split(scenario.outcomes[done:], now)
        meeting.wrong += map(str, check_mixed_loads(counted, metrics.read(scenario.node)))

    def _order(self, meeting: Meeting) -> Order:
        if meeting.place is None:
            return InTurns()
        place, seen = meeting.place, Counter[str]()

        def is_there(call: Call) -> bool:
            seen[call.pattern] += 1
            return Place(call.pattern, seen[call.pattern]) == place

        return Within(is_there, lambda: self._push(meeting, "not answered when the other had done what it could"))

    def _at_once(self, pair: Pair, lockstep: Lockstep, meeting: Meeting) -> None:
        raised: list[BaseException] = []

        def do(who: int) -> None:
            try:
                self._done(pair[who], lockstep.decide(who))
            except Cancelled as error:
                raised.append(error)
            except ReloadlabError as error:
                meeting.wrong.append(f"{pair[who].name} failed: {error}")
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                raised.append(error)
            finally:
                lockstep.end(who)

        threads = [threading.Thread(target=do, args=(who,), name=f"meeting-{who}") for who in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]

    def _push(self, meeting: Meeting, what: str) -> None:
        self._settler.settle([self._scenario.node])
        meeting.wrong += [f"{flow}: {what}" for flow in unanswered(self._scenario)]


def prove_two(
    spec: NodeSpec,
    pairs: Sequence[Pair],
    *,
    choose: Callable[[Sequence[Place]], Sequence[Place]] = lambda places: places,
    on_meeting: Callable[[Meeting], object] = lambda meeting: None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Meetings:
    """Have pairs meet on a node of their own: in turns, and at each place of the first that `choose` picks.

    `on_meeting` hears of each at its end; `options` go to the Scenario. Cancelled by `cancel`.
    """
    started, done, possible, failed = time.monotonic(), list[Meeting](), 0, list[Violation]()
    scenario = Scenario(spec, bursts="none", rate=RATE, **options)
    with scenario:
        two = Two(scenario, cancel)
        for pair in pairs:
            what = " and ".join(action.name for action in pair)
            try:
                places = two.places(pair)
            except Cancelled:
                raise
            except ReloadlabError as error:
                # Without a meeting it is what the call asks for that cannot be done.
                if not done:
                    raise
                failed.append(Violation(8, f"{pair[0].name} failed alone: {error}"))
                continue
            possible += len(places) + 1
            for place in (None, *choose(places)):
                meeting = Meeting(what, place)
                two.meet(pair, meeting)
                done.append(meeting)
                on_meeting(meeting)
        blind = ""
        try:
            blind = conclude(scenario)
        except ReloadlabError as error:
            # What was found before is worth more than the end of the node.
            failed.append(Violation(9, f"the node could not be left as it must be: {error}"))
    rest = [*failed, *note_findings(scenario.findings, done)]
    return Meetings(done, rest, scenario.gaps, time.monotonic() - started, possible, blind)


def _split(outcomes: Sequence[Outcome], now: Snapshot) -> Iterator[str]:
    """Yield the maps that a reload's programs use and that are not pinned, although one of the same name is.

    A buffer is no such map: programs of one load have it for one packet, and only tc pins it.
    """
    pinned = {pin.id for pin in now.pins.values()}
    # The kernel keeps no more of a name.
    names = {name[: bpf.OBJ_NAME_LEN - 1] for name in now.pins if not name.startswith(BUFFERS)}
    for outcome in outcomes:
        used = reach(attached.program_id for attached in outcome.attached).maps
        for ident in sorted(used - pinned):
            if (name := _name(ident)) in names:
                yield f"{outcome.subject} uses a map {name} (id {ident}) that is not the pinned one"


def _name(map_id: int) -> str:
    """Return the name of a map; empty if it was freed meanwhile."""
    try:
        fd = bpf.map_fd_by_id(map_id)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return ""
    try:
        return bpf.map_info(fd).name
    finally:
        os.close(fd)

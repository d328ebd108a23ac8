"""The proof of a reload: at every system call packets of all kinds go through before it is let on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datapath.errors import Cancelled, ReloadlabError
from lab.gates.call import Call
from lab.gates.supervisor import Answer
from lab.gates.underway import is_under_way
from lab.node.topology import NodeSpec
from lab.proof.action import RATE, Action, do_gated
from lab.proof.denied import Denied
from lab.proof.result import END, Gated, Proof, place
from lab.proof.settling import Settler
from lab.proof.watched import conclude, unanswered
from lab.scenario.scenario import Scenario
from lab.scenario.watched import Watched
from lab.watch.violation import Violation

_SECONDS = 0.1
"""Seconds in which packets at a call must be answered, on an ordinary machine (lab.system.pace).

What comes later is late, or lost, and found at the end.
"""


@dataclass
class Prover:
    """Decides on the calls of what is done under watch: each happens, once packets have met what was there before it.

    Nothing new can be met at a call if no call before it has changed anything. Of a series of updates of one map by its
    keys, the first is met, the last, and those between whose number is a power of 4: packets that came at each of
    thousands would note as many connections, and these would have to be carried over as well.

    With `denied`, packets of denied prefixes must be dropped at each call as well. `late` counts the times at which not
    all packets were answered before the call was let on.
    """

    scenario: Watched
    denied: Denied | None = None
    calls: list[Gated] = field(default_factory=list)
    late: int = 0
    _settler: Settler = field(default_factory=Settler)
    _what: str = ""
    _round: int = 1
    _empties: str | None = None
    _passed: list[Violation] = field(default_factory=list)
    _begun: bool = True
    _pending: dict[int, Call] = field(default_factory=dict)
    _series: str = ""
    _length: int = 0
    _left_ns: int = 0
    _silent: Sequence[str] = ()

    def begin(self, what: str, round: int, *, empties: str | None = None) -> None:
        """Name what follows; `empties` is that of an action."""
        self._what, self._round, self._left_ns, self._empties = what, round, time.monotonic_ns(), empties
        self._begun, self._pending, self._series, self._length = True, {}, "", 0

    def decide(self, call: Call) -> Answer:
        """Send a packet over each flow, and let the call go on."""
        is_met = self._begun or (bool(self._pending) and not self._is_within_series(call))
        # What its thread had under way is done; that of others may change something yet.
        others = {at: each for at, each in self._pending.items() if is_met and at != call.thread}
        under_way = {at: each for at, each in others.items() if is_under_way(each)}
        self._gate(call, tuple(each.text for each in under_way.values()))
        if is_met:
            self._burst(call, only_added=not self._begun and all(each.only_adds for each in self._pending.values()))
            self._begun, self._pending = False, under_way
        if call.changes:
            self._pending[call.thread] = call
            self._length = self._length + 1 if call.map == self._series else 1
            self._series = call.map
        self._left_ns = time.monotonic_ns()
        return None

    def _is_within_series(self, call: Call) -> bool:
        """Tell whether nothing has happened but another update of a series, which goes on and is not to be met."""
        goes_on = bool(call.map) and all(each.map == call.map for each in self._pending.values())
        return goes_on and not _is_met(self._length)

    def end(self) -> None:
        """Send the last packets, which meet what all calls have left."""
        end = Call(self.calls[-1].call.number + 1 if self.calls else 1, END, "", "", 0)
        self._gate(end)
        self._burst(end)

    def conclude(self, failed: Sequence[Violation]) -> Proof:
        """Check everything, and return the proof, with what has failed before."""
        scenario = self.scenario
        if self.denied is not None:
            self.denied.expect_counted()
        blind = conclude(scenario)
        if blind and not self.late:
            # The traffic between the calls had no CPU, but at each call packets were answered before it was let on.
            scenario.leave_out(blind)
            blind = ""
        findings = place([*failed, *self._passed, *scenario.findings], self.calls)
        return Proof(self.calls, findings, scenario.sent, scenario.lost, scenario.gaps, blind)

    def _gate(self, call: Call, under_way: tuple[str, ...] = ()) -> None:
        self.calls.append(Gated(self._round, self._what, call, self._left_ns, under_way))

    def _burst(self, call: Call, *, only_added: bool = False) -> None:
        """Send packets before a call is let on; `only_added` if all calls since the last ones only add something.

        A flow that was silent the last time is not waited for: whether it has an answer now, its packets tell.
        """
        self._settler.settle((agent.node for agent in self.scenario.agents), only_added=only_added)
        self._silent = unanswered(self.scenario, seconds=_SECONDS, silent=self._silent)
        self.late += bool(self._silent)
        passed = [] if self.denied is None else self.denied.passed()
        if self._empties is None or not call.fits(self._empties):
            self._passed += [Violation(7, what, (self._left_ns,)) for what in passed]


def _is_met(number: int) -> bool:
    """Tell whether the update of this number in its series, from 1 on, is met: at 1, 4, 16, 64, ..."""
    return number.bit_count() == 1 and number.bit_length() % 2 == 1


def do_met(
    prover: Prover, scenario: Scenario, action: Action, round: int, cancel: threading.Event | None = None
) -> None:
    """Do something, and have packets meet what each of its calls has left. ReloadlabError if it fails."""
    prover.begin(action.name, round, empties=action.empties)
    if action.other_path:
        scenario.expect(other_path=True)
    if action.warnings:
        scenario.expect(warnings=action.warnings)
    # Tens of thousands of look-ups are nothing that a packet could notice.
    do_gated(scenario, action, prover.decide, cancel=cancel, look_ups=False)
    prover.end()


def prove(
    spec: NodeSpec,
    actions: Sequence[Action],
    *,
    rounds: int = 1,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Proof:
    """Prove actions on a node of its own, one after the other; `options` go to the Scenario. Cancelled by `cancel`.

    Maps that the reloads replace, as they say themselves, are held to their contents.
    """
    scenario = Scenario(spec, bursts="none", rate=RATE, **options)
    failed: list[Violation] = []
    with scenario:
        prover = Prover(scenario, Denied.by(scenario))
        for round in range(1, rounds + 1):
            for action in actions:
                try:
                    do_met(prover, scenario, action, round, cancel)
                except Cancelled:
                    raise
                except ReloadlabError as error:
                    failed.append(Violation(8, f"{action.name} failed: {error}", (time.monotonic_ns(),)))
        return prover.conclude(failed)

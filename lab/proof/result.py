"""What came of a proof: every call, and what went wrong before the next one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.gates.call import Call
from lab.watch.violation import Violation

END = "the end"
"""What stands in the place of a call behind the last one."""


@dataclass(frozen=True, slots=True)
class Gated:
    """A call at which packets went through before it was let on: they met what the calls before it had left.

    `what` is the reload, `round` counts from 1. `at_ns` is when the call before was let on (CLOCK_MONOTONIC,
    nanoseconds): packets that are sent from then on may meet what it has left. `under_way` are calls of other threads
    that were let on before and not over yet: packets may have met what was before them.
    """

    round: int
    what: str
    call: Call
    at_ns: int
    under_way: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        beside = f", during {', '.join(self.under_way)}" if self.under_way else ""
        return f"call {self.call.number} of {self.what}, before {self.call.text}{beside}"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold, and the call before which it was met; None: at no call, or at many."""

    violation: Violation
    gated: Gated | None


@dataclass(frozen=True, slots=True)
class Proof:
    """The calls of all reloads in their order, packets that were sent and lost, the findings, and what was not seen.

    `blind` says why packets may not have met what the calls have left; empty if they have.
    """

    calls: Sequence[Gated]
    findings: Sequence[Finding]
    sent: int
    lost: int
    gaps: Sequence[str]
    blind: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.findings)

    @property
    def undecided(self) -> str:
        """Why nothing can be said, although nothing was found; empty if something can."""
        if self.failed:
            return ""
        stopped = any(gated.call.name != END for gated in self.calls)
        return self.blind if stopped else "no verdict: no system call was stopped"

    @property
    def holds(self) -> bool:
        return not self.failed and not self.undecided

    def to_json(self) -> dict[str, Any]:
        """Return the proof as a JSON object; a finding's `call` is its place in `calls`, null without one."""
        places = {id(gated): place for place, gated in enumerate(self.calls)}
        return {
            "calls": [
                {
                    "round": gated.round,
                    "reload": gated.what,
                    "number": gated.call.number,
                    "call": gated.call.text,
                    "syscall": gated.call.syscall,
                    "thread": gated.call.thread,
                    "at_ns": gated.at_ns,
                    "under_way": list(gated.under_way),
                }
                for gated in self.calls
            ],
            "sent": self.sent,
            "lost": self.lost,
            "findings": [
                {
                    "invariant": finding.violation.invariant,
                    "what": finding.violation.what,
                    "call": None if finding.gated is None else places[id(finding.gated)],
                }
                for finding in self.findings
            ],
            "gaps": list(self.gaps),
            "undecided": self.undecided,
        }


MOST = 8
"""Calls or cases that a violation is told with; one that happened during more belongs to none in particular."""


def during(violation: Violation, begun: Sequence[int]) -> list[int]:
    """Return the numbers of those during which a violation happened, of what began at these times, one after another.

    None if it has no time, or happened during more than MOST of them.
    """
    found = dict.fromkeys(bisect_right(begun, at_ns) - 1 for at_ns in violation.at)
    found.pop(-1, None)
    return list(found) if len(found) <= MOST else []


def place(violations: Sequence[Violation], calls: Sequence[Gated]) -> list[Finding]:
    """Return each violation with the call before which it happened; one that happened at several, at each of them.

    One that happened at none, or at more than MOST, is told once, without a call.
    """
    findings = []
    begun = [gated.at_ns for gated in calls]
    for violation in violations:
        met = [calls[number] for number in during(violation, begun)]
        findings += [Finding(violation, gated) for gated in met or (None,)]
    return findings

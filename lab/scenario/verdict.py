"""How a scenario ends that has not passed: something does not hold, or nothing could have been seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datapath.errors import ReloadlabError
from lab.watch.violation import Violation

SHOWN = 8
"""Violations of one invariant that an error's text tells; of more it tells the number."""


class InvariantsViolated(ReloadlabError):
    """A scenario after which something does not hold; `violations` lists all of it, the text the first of each kind."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("\n".join(["invariants violated:", *(f"  {line}" for line in _lines(violations))]))
        self.violations = tuple(violations)

    @property
    def invariants(self) -> frozenset[int]:
        return frozenset(violation.invariant for violation in self.violations)


def _lines(violations: Sequence[Violation]) -> Iterator[str]:
    """Yield a line per violation, in the order of the invariants, at most SHOWN for each."""
    for number in sorted({violation.invariant for violation in violations}):
        found = [violation for violation in violations if violation.invariant == number]
        yield from map(str, found[:SHOWN])
        if len(found) > SHOWN:
            yield f"invariant {number}: and {len(found) - SHOWN} more"


class NoVerdict(ReloadlabError):
    """A scenario in which nothing was found wrong, but whose traffic could not have seen it; times in nanoseconds."""

    def __init__(self, starved_ns: int, total_ns: int) -> None:
        super().__init__(
            f"no verdict: the traffic got no CPU for {starved_ns / 1e6:.0f} of the {total_ns / 1e6:.0f} ms of reloads"
        )
        self.starved_ns, self.total_ns = starved_ns, total_ns

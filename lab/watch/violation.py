"""A violated invariant (docs/invariants.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Violation:
    """A violated invariant: its number in docs/invariants.md, and the finding.

    `at` are the times at which the packets concerned were sent, or the event happened, in nanoseconds of
    CLOCK_MONOTONIC; empty for what has no time. `loser` is the flow whose packets were lost, if some were.
    """

    invariant: int
    what: str
    at: tuple[int, ...] = ()
    loser: str = ""

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.what}"

    def on(self, node: str) -> Violation:
        """Return the violation with the name of the node on which it was found."""
        return replace(self, what=f"{node}: {self.what}")

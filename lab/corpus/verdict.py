"""What came of a fault: caught, and by what; survived; never exercised; or declared equivalent and not tried."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from lab.corpus.fault import Fault


class Outcome(enum.StrEnum):
    """What came of a fault."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    NOT_EXERCISED = "not exercised"
    EQUIVALENT = "equivalent"
    FALSE_ALARM = "false alarm"
    """A scenario failed in which the fault did not take effect."""
    REFUTED = "refuted"
    """It is said to be equivalent to no fault, and was caught."""


class How(enum.StrEnum):
    """By what a scenario caught a fault."""

    INVARIANT = "invariant"
    RELOAD = "reload"
    """It raised something, as a reload does that cannot be done."""
    ASSERTION = "assertion"
    """One of the scenario's own."""
    HUNG = "hung"
    DIED = "died"
    """The process was killed by the kernel, or by itself."""


@dataclass(frozen=True, slots=True)
class Catch:
    """The first scenario that failed: which, by what, the invariants that did not hold, the step, and what it said."""

    scenario: str
    how: How
    invariants: tuple[int, ...] = ()
    step: str = ""
    text: str = ""

    @property
    def by(self) -> str:
        """By what the scenario noticed it, in words."""
        told = f"invariant {', '.join(map(str, self.invariants))}" if self.invariants else ""
        return told if self.how is How.INVARIANT else ", ".join(filter(None, (self.how, told)))

    def __str__(self) -> str:
        return f"{self.by}, {self.step}" if self.step else self.by


@dataclass(frozen=True, slots=True)
class Trial:
    """What one fault's scenarios did: those that ran, in order, the packets that they sent, and the seconds.

    `applied` are those in which the fault took effect.
    """

    applied: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    sent: int = 0
    seconds: float = 0.0
    catch: Catch | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        catch = data["catch"]
        if catch is not None:
            catch = Catch(**{**catch, "how": How(catch["how"]), "invariants": tuple(catch["invariants"])})
        lists = {name: tuple(data[name]) for name in ("applied", "scenarios")}
        return cls(**{**data, **lists, "catch": catch})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a fault; `trial` is empty for one that was not tried."""

    fault: str
    kind: str
    outcome: Outcome
    what: str
    cites: tuple[str, ...] = ()
    equivalent: str = ""
    trial: Trial = field(default_factory=Trial)

    @classmethod
    def of(cls, fault: Fault, trial: Trial | None) -> Self:
        """Return what a trial says of its fault; without a trial, which is for equivalent ones, just that."""
        return cls(
            fault.name,
            fault.kind,
            Outcome.EQUIVALENT if trial is None else _outcome(fault, trial),
            fault.what,
            fault.cites,
            fault.equivalent,
            trial or Trial(),
        )

    @property
    def good(self) -> bool:
        """Whether the corpus is content with it."""
        return self.outcome in (Outcome.CAUGHT, Outcome.EQUIVALENT)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _outcome(fault: Fault, trial: Trial) -> Outcome:
    if trial.catch is None:
        if fault.equivalent:
            return Outcome.EQUIVALENT
        return Outcome.SURVIVED if trial.applied else Outcome.NOT_EXERCISED
    if trial.catch.scenario not in trial.applied:
        return Outcome.FALSE_ALARM
    return Outcome.REFUTED if fault.equivalent else Outcome.CAUGHT

"""What came of a fault: caught, and by what; survived; never exercised; or why nothing can be said of it."""

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
    FLAKY = "flaky"
    """Scenarios failed with it, but not again."""
    NO_VERDICT = "no verdict"
    """Nothing caught it, and in a scenario in which it took effect nothing could be seen."""
    ERROR = "error"
    """It could not be tried: its C is refused, or its process ended by itself."""


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
    """A scenario that failed: which, by what, the invariants that did not hold, the step, and what it said.

    `tries` is how often it was run with the fault, and had a verdict, until it had failed twice, or could no more.
    """

    scenario: str
    how: How
    invariants: tuple[int, ...] = ()
    step: str = ""
    text: str = ""
    tries: int = 1

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(**{**data, "how": How(data["how"]), "invariants": tuple(data["invariants"])})

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

    `applied` are those in which the fault took effect; `blind` those of them (without a fault: of all) that had no
    verdict, and had none again, or whose failure could not be confirmed for that reason; `catch` is the one that caught
    it, `unconfirmed` are those that failed once and not again, `false_alarm` the first that failed without the fault's
    effect. `error` says why the trial could not go on.
    """

    applied: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()
    sent: int = 0
    seconds: float = 0.0
    catch: Catch | None = None
    unconfirmed: tuple[Catch, ...] = ()
    false_alarm: Catch | None = None
    error: str = ""

    @property
    def failure(self) -> Catch | None:
        """The failure that weighs most, None if no scenario failed."""
        return next((catch for catch in (self.catch, *self.unconfirmed, self.false_alarm) if catch is not None), None)

    @property
    def failed(self) -> tuple[str, ...]:
        """The scenarios that failed."""
        return tuple(catch.scenario for catch in (self.catch, *self.unconfirmed, self.false_alarm) if catch is not None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        one = {name: data[name] and Catch.from_json(data[name]) for name in ("catch", "false_alarm")}
        lists = {name: tuple(data[name]) for name in ("applied", "scenarios", "blind")}
        return cls(**{**data, **lists, **one, "unconfirmed": tuple(map(Catch.from_json, data["unconfirmed"]))})


@dataclass(frozen=True, slots=True)
class Control:
    """A scenario in which something failed, run without a fault; `trial` is what came of that."""

    scenario: str
    trial: Trial

    @property
    def passed(self) -> bool | None:
        """Whether it passed; None if that is not known: it could not be run, or had no verdict, twice."""
        if self.trial.catch is not None:
            return False
        return None if self.trial.error or self.trial.blind else True

    @property
    def problem(self) -> str:
        """What kept it from passing; empty if nothing did."""
        if self.trial.catch is not None:
            return f"failed too:\n{self.trial.catch.text}"
        if self.trial.error:
            return f"could not be run: {self.trial.error}"
        return "had no verdict, twice" if self.trial.blind else ""

    def to_json(self) -> dict[str, Any]:
        trial = self.trial
        return {"scenario": self.scenario, "passed": self.passed, "error": trial.error, "seconds": trial.seconds}


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
    if trial.error:
        return Outcome.ERROR
    if trial.catch is not None:
        return Outcome.REFUTED if fault.equivalent else Outcome.CAUGHT
    if any(catch.scenario not in trial.blind for catch in trial.unconfirmed):
        return Outcome.FLAKY
    if trial.false_alarm is not None:
        return Outcome.FALSE_ALARM
    if trial.blind:
        return Outcome.NO_VERDICT
    if not trial.applied and not fault.idle:
        return Outcome.NOT_EXERCISED
    return Outcome.EQUIVALENT if fault.equivalent else Outcome.SURVIVED

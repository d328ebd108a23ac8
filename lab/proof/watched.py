"""What proofs and sweeps ask of a scenario: packets that must be answered now, and the verdict at its end."""

from __future__ import annotations

from collections.abc import Sequence

from lab.scenario.verdict import InvariantsViolated, NoVerdict
from lab.scenario.watched import Watched
from lab.system.pace import slowness

SECONDS = 0.5
"""Seconds in which a packet is answered on an ordinary machine (lab.system.pace)."""


def unanswered(scenario: Watched, *, seconds: float = SECONDS, silent: Sequence[str] = ()) -> list[str]:
    """Send a packet over each flow; return the flows whose packet was not answered in time.

    Flows that were `silent` before have a moment alone. What arrives of a denied flow is found when the traffic ends.
    """
    bursts = scenario.traffic.burst_all(1, timeout=seconds * slowness(), silent=silent)
    return [burst.flow for burst in bursts if not burst.complete and not burst.denied]


def conclude(scenario: Watched) -> str:
    """Check everything, once; return why the traffic could have seen nothing, if nothing was found, else "".

    What reloads say that they have replaced may be replaced. What was found is in `findings`; the end of the block
    raises nothing of it.
    """
    scenario.expect_replaced()
    scenario.abandon()
    try:
        scenario.finish()
    except InvariantsViolated:
        return ""
    except NoVerdict as error:
        return str(error)
    return ""

"""What is done in a process of its own while every system call of it is decided on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from datapath.errors import Cancelled
from lab.agent.gated import under_gates
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Decide
from lab.scenario.scenario import Scenario

THERE, BACK = "there", "back"
"""The values of --way (lab.cli.proofs)."""

RATE = 200.0
"""Packets a second over all flows, besides those at the calls."""


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do: `do` may use a scenario's agent and node, not its traffic; an event cancels it.

    `before` brings the node back to where it can be done once more. `other_path`: packets may take another way
    afterwards. `whole`: if it fails, everything is as before; of a switch of a whole node, each endpoint is. `warnings`
    are texts in those that it gives.
    `way` is THERE or BACK of what goes there and back, empty of all else. `told` has the scenario's agent know what a
    copy of it has set by doing it.
    `empties` is a pattern of calls before which XDP may let denied packets pass: the device has no program then.
    `arguments` are those with which a command does it. `subjects` is what it reloads, all that the node has by default.
    """

    name: str
    do: Callable[[Scenario, threading.Event], object]
    before: Callable[[Scenario, threading.Event], object] | None = None
    other_path: bool = False
    whole: bool = True
    arguments: tuple[str, ...] = ()
    warnings: frozenset[str] = frozenset()
    empties: str | None = None
    subjects: tuple[str, ...] = ()
    way: str = ""
    told: Callable[[Scenario], object] | None = None

    def prepare(self, scenario: Scenario) -> None:
        """Bring the node to where this can be done."""
        if self.before is not None:
            self.before(scenario, threading.Event())

    def tell(self, scenario: Scenario) -> None:
        """Have the scenario's agent know what its copy has set, which has done this."""
        if self.told is not None:
            self.told(scenario)


def do_gated(
    scenario: Scenario,
    action: Action,
    decide: Decide,
    *,
    cancel: threading.Event | None = None,
    look_ups: bool = True,
    receives: bool = False,
    forked: bool = False,
) -> None:
    """Do it, and have each call decided on; once `cancel` is set, all happen at once.

    `look_ups`, `receives` and `forked` are those of under_gates(). What our own pipeline loads for another loader is
    decided on as well.

    Raises what the action raised, WorkerDied if its process was killed, Cancelled even if it came to its end.
    """

    def unless_cancelled(call: Call) -> Answer:
        return None if cancel is not None and cancel.is_set() else decide(call)

    under_gates(
        scenario.agent,
        lambda cancelled: action.do(scenario, cancelled),
        unless_cancelled,
        cancel=cancel,
        look_ups=look_ups,
        receives=receives,
        forked=forked or scenario.agent.loads_itself(action.subjects),
    )
    if cancel is not None and cancel.is_set():
        raise Cancelled(f"cancelled during {action.name}")

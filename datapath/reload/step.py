"""A reload as data: the steps, in order, each of which can be described, applied and undone.

A plan can be printed, timed, stopped between two steps, and changed: a faulty loader is a function from plan to plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datapath.base.attempts import each
from datapath.errors import printable

if TYPE_CHECKING:
    from datapath.reload.workspace import Workspace


@dataclass(frozen=True)
class Step:
    """One step. `name` says what is done, the same for all steps of a kind; `target` to which object or interface."""

    target: str

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the step in its plan."""
        return self.name, self.target

    def describe(self) -> str:
        """Say in one line what the step will do."""
        raise NotImplementedError

    def apply(self, work: Workspace) -> None:
        """Do it, and register with `work.on_undo` how to take it back, before or right after each thing that is done.

        May raise half-way: `undo` is then called all the same.
        """
        raise NotImplementedError

    def undo(self, work: Workspace) -> None:
        """Take back what `apply` has registered, the last first. Called in reverse order of the steps.

        What cannot be taken back is raised when everything else is.
        """
        with each() as attempt:
            for action in work.take_undo(self):
                attempt(action)


@dataclass(frozen=True)
class Plan:
    """The steps of one reload of `subject` (an endpoint's name). `warnings` tell what was left out and why."""

    subject: str
    endpoint_id: int
    generation: int
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()

    def change(self, change: Callable[[Step], Step | None]) -> Plan:
        """Return the plan with every step replaced by what `change` gives for it, None leaving it out."""
        changed = (change(step) for step in self.steps)
        return replace(self, steps=tuple(step for step in changed if step is not None))

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (name, target, description) of every step, printable whatever bytes an interface name has."""
        return [(step.name, printable(step.target), printable(step.describe())) for step in self.steps]

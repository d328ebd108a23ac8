"""Bursts at steps: reloads of a scenario that stop between their steps until a burst over all flows is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from datapath.endpoint import DatapathConfig
from datapath.errors import ReloadlabError
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from datapath.reload.step import Plan, Step
from datapath.reload.transaction import Observer
from datapath.reload.workspace import Workspace
from lab.node.topology import HEALTH, HOST

Bursts = Literal["first", "all", "none"]
"""Which reloads are stepped through: of each node the first of every kind, all, or none."""

POD = "pod"


class BadBursts(ReloadlabError):
    """A value of `bursts` that is none of Bursts."""


def check_bursts(bursts: str) -> None:
    """Raise BadBursts for an unknown mode."""
    if bursts not in get_args(Bursts):
        raise BadBursts(f"bursts is {bursts!r}, not one of {', '.join(get_args(Bursts))}")


@dataclass
class Stepper:
    """Calls `push` before the first step of a reload and after each one: what a step has left is met before the next.

    An observer of reloads. `done` is called when the last step is met.
    """

    push: Callable[[], None]
    last: Step
    done: Callable[[], None]
    begun: bool = False

    def before(self, step: Step, work: Workspace) -> None:
        if not self.begun:
            self.begun = True
            self.push()

    def after(self, step: Step, work: Workspace) -> None:
        self.push()
        if step == self.last:
            self.done()


class Stepping:
    """Decides which reloads are stepped through.

    Kinds are the host, the overlay, XDP, the health endpoint and a pod. The first of a kind is one more time the first
    when the node's mode or its build is another, and until one has come to its last step: what fails before that leaves
    steps that no packet has met.
    """

    def __init__(self, bursts: Bursts, push: Callable[[], None]) -> None:
        self._bursts = bursts
        self._push = push
        self._known: set[tuple[str, DatapathConfig]] = set()

    def observer(self, config: DatapathConfig, plan: Plan) -> Observer | None:
        """Return who looks on at this reload; None if it runs free."""
        if self._bursts == "none":
            return None
        kind = plan.subject if plan.subject in (HOST, OVERLAY_SUBJECT, XDP_SUBJECT, HEALTH) else POD
        if self._bursts == "first" and (kind, config) in self._known:
            return None
        return Stepper(self._push, plan.steps[-1], lambda: self._known.add((kind, config)))

"""The plans of a node's reloads: those of our own pipeline, or of another loader, as a change makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Unpack

from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from datapath.reload.step import Plan
from lab.agent.loading import LoadedNode, LoadedOptions
from lab.node.node import Node

Change = Callable[[Plan], Plan]
"""Turns a plan into the plan that is applied in its place."""


class PlannedNode(LoadedNode):
    """A node and the plans of its reloads. `change` is applied to each: so a test can give it a faulty loader."""

    def __init__(self, node: Node, **options: Unpack[LoadedOptions]) -> None:
        super().__init__(node, **options)
        self.change: Change | None = None

    def plan(self, subject: str, *, generation: int = 0) -> Plan:
        """Return the plan of the next reload of `subject`, as `change` makes it; nothing is done."""
        if subject == OVERLAY_SUBJECT:
            plan = self.loader.plan_overlay(generation)
        elif subject == XDP_SUBJECT:
            plan = self.loader.plan_xdp(generation)
        else:
            endpoint = replace(self.endpoint(subject), generation=generation)
            plan = self.loader.plan(endpoint, subject=subject, down=subject in self.node.facts.unloaded)
        given = self.by_loader(plan)
        if self.change is None:
            return given
        changed = self.change(given)
        if given is not plan and changed == given and self.change(plan) != plan:
            self.refuse("a fault that is put into the plan of our own pipeline")
        return changed

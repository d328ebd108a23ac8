"""A loader with a fault: our pipeline, with a moment in which the policy slot of pod-1 is empty. No cancellation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datapath.base.mapnames import POLICY_CALLS
from datapath.kernel.map import open_pin
from datapath.kernel.progarray import program_at
from datapath.reload.step import Plan
from datapath.reload.workspace import Workspace
from lab.loaders import pipeline
from lab.loaders.protocol import CANCEL
from tests.lab.emptied import FIRST_POD, EmptySlot, before

GAP = 0.001
"""Seconds that the slot stays empty by itself: packets come at the next call, however soon that is."""


class EmptyFilledSlot(EmptySlot):
    """The first load finds it empty."""

    def apply(self, work: Workspace) -> None:
        with open_pin(work.config.globals / POLICY_CALLS) as array:
            filled = program_at(array.fd, FIRST_POD) is not None
        if filled:
            super().apply(work)


class Careless(pipeline.Pipeline):
    supports = tuple(word for word in pipeline.Pipeline.supports if word != CANCEL)

    def plan(self, request: Mapping[str, Any]) -> Plan:
        plan = super().plan(request)
        return (
            before("attach ingress", EmptyFilledSlot("slot", GAP, missed=0))(plan) if request["kind"] == "pod" else plan
        )


if __name__ == "__main__":
    pipeline.main(Careless)

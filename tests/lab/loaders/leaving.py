"""A loader with a fault: our pipeline, which leaves what is attached in the other way, filter or tcx link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from datapath.load.programs import Program
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach
from datapath.reload.tcxlinks import TcxHook
from datapath.reload.workspace import Workspace
from lab.loaders import pipeline


class OnlyAttach(Attach):
    """The program of the other way goes on to handle packets."""

    def _remove_others(self, work: Workspace, hook: TcxHook, program: Program) -> None:
        """Leave them."""


def leaving(step: Step) -> Step:
    if type(step) is not Attach:
        return step
    return OnlyAttach(**{item.name: getattr(step, item.name) for item in fields(step)})


class Leaving(pipeline.Pipeline):
    def plan(self, request: Mapping[str, Any]) -> Plan:
        return super().plan(request).change(leaving)


if __name__ == "__main__":
    pipeline.main(Leaving)

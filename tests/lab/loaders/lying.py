"""Loaders that say that a reload was done although a call has failed: our pipeline, with an error that it keeps.

`lying undone` has undone everything; `lying half` has done all but what has failed.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datapath.errors import NetlinkError
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach
from datapath.reload.workspace import Workspace
from lab.loaders import pipeline


@dataclass(frozen=True)
class Ignored(Step):
    """A step whose failure does not matter to anybody."""

    step: Step

    @property
    def name(self) -> str:
        return self.step.name

    def describe(self) -> str:
        return self.step.describe()

    def apply(self, work: Workspace) -> None:
        try:
            self.step.apply(work)
        except (NetlinkError, OSError) as error:
            if error.errno != errno.ENOBUFS:
                raise


class Undone(pipeline.Pipeline):
    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return super().answer(request)
        except (NetlinkError, OSError) as error:
            if error.errno != errno.ENOBUFS:
                raise
            return {}


class Half(pipeline.Pipeline):
    def plan(self, request: Mapping[str, Any]) -> Plan:
        return (
            super().plan(request).change(lambda step: Ignored(step.target, step) if isinstance(step, Attach) else step)
        )


if __name__ == "__main__":
    pipeline.main({"undone": Undone, "half": Half}[sys.argv[1]])

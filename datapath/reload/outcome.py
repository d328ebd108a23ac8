"""What a reload did and how long each step took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datapath.base.shallow import shallow
from datapath.base.timing import Interval
from datapath.endpoint import Attachment


@dataclass(frozen=True, slots=True)
class Span:
    """One step of a reload. `helpers` are the pieces that other threads did for it; they overlap with it in time."""

    step: str
    target: str
    work: Interval
    helpers: tuple[Interval, ...] = ()

    @property
    def duration_ns(self) -> int:
        return self.work.end_ns - self.work.start_ns


def spans_json(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Return steps as JSON values, with their durations."""
    return [
        shallow(span)
        | {
            "work": shallow(span.work),
            "helpers": tuple(map(shallow, span.helpers)),
            "duration_ns": span.duration_ns,
        }
        for span in spans
    ]


XDP_DIRECTION = "xdp"
"""What stands in the place of a direction for a program that is attached to XDP."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A program that the reload attached, by tc, by tcx or to XDP; `program_id` is the kernel's."""

    ifname: str
    direction: str
    program: str
    program_id: int
    attachment: Attachment = Attachment.TC


@dataclass(frozen=True, slots=True)
class Loaded:
    """One object that the reload loaded: the kernel's ids of its programs by name.

    `arrays` are the ids of its program arrays by name, `slots` the program ids that it declares for the slots of each.
    `sharer` names the loader if it may use the calls map of the load before; else it is empty.
    """

    object: str
    programs: Mapping[str, int]
    arrays: Mapping[str, int]
    slots: Mapping[str, Mapping[int, int]]
    sharer: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A reload that came to its end; times in nanoseconds. `migrated` names the maps that were replaced.

    `loaded` are the objects of the load, whether attached or not.
    """

    subject: str
    endpoint_id: int
    generation: int
    attached: tuple[Attached, ...]
    migrated: tuple[str, ...]
    warnings: tuple[str, ...]
    spans: tuple[Span, ...]
    loaded: tuple[Loaded, ...] = ()

    @property
    def duration_ns(self) -> int:
        return self.spans[-1].work.end_ns - self.spans[0].work.start_ns if self.spans else 0

    @property
    def by_tcx(self) -> bool:
        """Whether it attached programs by tcx."""
        return any(each.attachment is Attachment.TCX for each in self.attached)

    @property
    def end_ns(self) -> int:
        """When it ended. Generations do not tell the order of reloads: each has its number before its turn."""
        return self.spans[-1].work.end_ns if self.spans else 0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values, with durations added; without `loaded`: its ids mean nothing later."""
        values = shallow(self)
        del values["loaded"]
        lists = {"attached": tuple(map(shallow, self.attached)), "spans": spans_json(self.spans)}
        return values | lists | {"duration_ns": self.duration_ns}


@dataclass(frozen=True, slots=True)
class FailedReload:
    """A reload that failed: how far it came, and when it was undone.

    The last of `spans` is the step that failed; without a failing step, such as at a cancellation, it is the last step
    that was done. `attached` is what it had attached by then. `error` is the message of what was raised. A reload that
    failed after the commit is not undone: its load stays, `done` says what it has done, and `rollback` is None. Of all
    others `done` is None.
    """

    subject: str
    endpoint_id: int
    generation: int
    spans: tuple[Span, ...]
    rollback: Interval | None
    error: str
    done: Outcome | None = None
    attached: tuple[Attached, ...] = ()

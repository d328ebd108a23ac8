"""Which steps of reloads had packets under way, and which went unseen."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datapath.reload.outcome import Span
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from lab.node.topology import HEALTH, HOST
from lab.scenario.timeline import Reload, name_of
from lab.traffic.report import Pause


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many steps were `seen` and `unseen`; kinds of steps are among the `seen_kinds` if one of them was.

    A step is seen if a packet that meets what is reloaded, and that is answered, was sent while the step ran or before
    the next one began.
    """

    seen: int = 0
    unseen: int = 0
    seen_kinds: tuple[str, ...] = ()
    unseen_kinds: tuple[str, ...] = ()


def coverage(reloads: Sequence[Reload], sent_at: Callable[[str], Sequence[int]]) -> Coverage:
    """Count the steps of reloads; `sent_at` returns for a subject when packets were sent that meet it, in order."""
    known = {subject: sent_at(subject) for subject in {reload.subject for reload in reloads}}
    seen = unseen = 0
    kinds: dict[str, bool] = {}
    for number, reload in enumerate(reloads):
        following = next((r.start_ns for r in reloads[number + 1 :] if r.start_ns >= reload.end_ns), None)
        # What a failed reload has done is there until it is undone.
        following = following if reload.rollback is None else reload.end_ns
        # One that is cancelled before its first step has none.
        ends = [*(span.work.start_ns for span in reload.spans), following][1:]
        for span, end in zip(reload.spans, ends, strict=True):
            found = _any_within(known[reload.subject], span.work.start_ns, end)
            seen, unseen = seen + found, unseen + (not found)
            kind = _kind(reload, span)
            kinds[kind] = kinds.get(kind, False) or found
    seen_kinds = tuple(kind for kind, found in kinds.items() if found)
    return Coverage(seen, unseen, seen_kinds, tuple(kind for kind, found in kinds.items() if not found))


def starved_in(reloads: Sequence[Reload], pauses: Sequence[Pause]) -> tuple[int, int]:
    """Return (for how long the traffic did not run during reloads, how long they took), in nanoseconds."""
    times = [(reload.start_ns, reload.end_ns) for reload in reloads]
    total = sum(end - start for start, end in times)
    starved = sum(
        max(min(pause.end_ns, end) - max(pause.start_ns, start), 0) for start, end in times for pause in pauses
    )
    return starved, total


def _any_within(times: Sequence[int], start_ns: int, end_ns: int | None) -> bool:
    """Tell whether one of the times lies in [start_ns, end_ns); None: no end."""
    first = bisect_left(times, start_ns)
    return first < len(times) and (end_ns is None or times[first] < end_ns)


def _kind(reload: Reload, span: Span) -> str:
    """Return the kind of a step: with its target for the host, the overlay and XDP, alike for all pods of a node."""
    node, _, subject = reload.subject.rpartition("/")
    if subject in (HOST, OVERLAY_SUBJECT, XDP_SUBJECT):
        return f"{name_of(span, reload.subject)} of {reload.subject}"
    if subject == HEALTH:
        return f"{span.step} of {reload.subject}"
    return f"{span.step} of a pod" + (f" of node {node}" if node else "")

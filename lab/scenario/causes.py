"""What dropped the packets that a flow has lost: the drops of its packets that fit their times."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from operator import itemgetter

from lab.system.symbols import places
from lab.watch.checks.drops import HARMLESS, NO_SOCKET, VERDICTS
from lab.watch.drop_events import DropEvent
from lab.watch.drops import Dropped
from lab.watch.kernel_drops import KernelDrop
from lab.watch.packet import Packet

UNDER_WAY_NS = 1_000_000_000
"""A packet is dropped at most this long after it was sent: so long the kernel keeps one while it asks for a neighbour.
"""

SAME_NS = 1_000_000
"""The kernel frees what a program drops within this time."""

SHOWN = 3
"""Causes that one text names."""

Cause = Callable[[], str]
"""Returns what dropped a packet."""

Generations = Callable[[str, int, int], Sequence[int]]
"""Returns which loads of an endpoint packets could meet, by the node's name, the endpoint's id and the time."""


class Causes:
    """Tells by what the packets of flows were dropped."""

    def __init__(self, dropped: Dropped, generations: Generations) -> None:
        self._dropped = dropped
        self._generations = generations

    def text(self, flow: str, sent: Sequence[int]) -> str:
        """Return what dropped the packets of a flow that were lost, sent at these times (CLOCK_MONOTONIC).

        Such as `dropped by generation 12, Missed tail call, bpf_lxc.c:214`, the most frequent first, with its count
        unless it is the cause of all; empty if no drop is known.
        """
        causes = Counter(self._matching(flow, sorted(sent)))
        if not causes:
            return ""
        shown = [f"by {cause}{f' ({n})' if n < len(sent) else ''}" for cause, n in causes.most_common(SHOWN)]
        more = len(causes) - SHOWN
        return f"dropped {' and '.join(shown)}" + (f" and by {more} others" if more > 0 else "")

    def _matching(self, flow: str, sent: Sequence[int]) -> Iterator[str]:
        """Yield the cause of each drop that fits a loss: each fits the last one before it that has no cause yet."""
        upcoming = list(reversed(sent))
        waiting: list[int] = []
        for time_ns, cause in self._by_flow.get(self._dropped.ownership.look(flow), ()):
            while upcoming and upcoming[-1] <= time_ns:
                waiting.append(upcoming.pop())
            if waiting and time_ns - waiting[-1] <= UNDER_WAY_NS:
                waiting.pop()
                yield cause()

    @cached_property
    def _by_flow(self) -> Mapping[str, Sequence[tuple[int, Cause]]]:
        """The drops of each flow, requests and replies: when, and by what, in order of time.

        By what is told when it is asked for: of a long run with many reloads, most drops are nobody's loss.
        """
        found: defaultdict[str, list[tuple[int, Cause]]] = defaultdict(list)
        for node, events in self._dropped.programs.items():
            for event in events:
                found[self._flow(event.packet)].append((event.time_ns, partial(self._program, node, event)))
        told = {flow: sorted(at for at, _ in drops) for flow, drops in found.items()}
        known = [(self._flow(drop.packet), drop) for drop in self._dropped.kernel if drop.reason not in HARMLESS]
        lost = [(flow, drop) for flow, drop in known if flow and not self._has_arrived(drop)]
        names = places(drop.location for _, drop in lost if drop.reason not in VERDICTS)
        for flow, drop in lost:
            if drop.reason not in VERDICTS:
                text = f"the kernel, {drop.reason} at {names[drop.location]}"
                found[flow].append((drop.time_ns, partial(str, text)))
            elif not _any_near(told.get(flow, ()), drop.time_ns):
                found[flow].append((drop.time_ns, partial(self._silent, drop)))
        return {flow: sorted(drops, key=itemgetter(0)) for flow, drops in found.items()}

    def _flow(self, packet: Packet | None) -> str:
        """Return the flow to which a packet belongs, or the one that it refuses; empty if there is none."""
        if packet is None:
            return ""
        ownership = self._dropped.ownership
        inner = ownership.inside(packet)
        return (ownership.flow(inner.quoted or inner) or "").removesuffix(", reply")

    def _has_arrived(self, drop: KernelDrop) -> bool:
        """Tell whether a packet was where it should end: an ICMP error or an echo reply is not dropped so."""
        ownership = self._dropped.ownership
        flow = ownership.flow(ownership.inside(drop.packet)) if drop.packet is not None else None
        return drop.reason == NO_SOCKET and flow is not None and ownership.without_socket(flow)

    def _program(self, node: str, event: DropEvent) -> str:
        known = " or ".join(map(str, self._generations(node, event.endpoint, event.time_ns)))
        return f"{f'generation {known}' if known else 'a program'}, {event}"

    def _silent(self, drop: KernelDrop) -> str:
        return f"a program that told nothing, {drop.reason}{self._dropped.place(drop)}"


def _any_near(times: Sequence[int], time_ns: int) -> bool:
    """Tell whether one of the times, in their order, is at most SAME_NS away."""
    first = bisect_left(times, time_ns - SAME_NS)
    return first < len(times) and times[first] <= time_ns + SAME_NS

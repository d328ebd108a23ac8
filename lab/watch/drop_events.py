"""The drop notifications of a node's programs: which packet, why, and where in the C that was decided."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lab.abi import notifications, reasons
from lab.abi.notifications import DropNotify, PolicyVerdictNotify, source_file
from lab.node.node import Node
from lab.watch.monitor import Monitor
from lab.watch.packet import Packet, decode_frame

RING_PAGES = 256
"""Pages of the ring of each CPU: 1 MiB, about 5,000 messages. Programs of devices write one for each packet."""

# Most messages are traces: they must cost as little as can be.
_DROP, _VERDICT = (bytes((kind,)) for kind in (notifications.NOTIFY_DROP, notifications.NOTIFY_POLICY_VERDICT))


@dataclass(frozen=True, slots=True)
class DropEvent:
    """A packet that a program dropped, at `time_ns` (CLOCK_MONOTONIC), for `reason` (cilium_metrics counts it too).

    `file` and `line` are the place of the decision in our programs, and of the notification in Cilium's; empty and 0 in
    sources that do not tell. `endpoint` is the id of the program's endpoint, `ifindex` its interface on the node.
    `packet` is None if it was no IP packet.
    """

    time_ns: int
    reason: int
    file: str
    line: int
    endpoint: int
    ifindex: int
    packet: Packet | None

    @property
    def place(self) -> str:
        """File and line, such as `bpf_lxc.c:214`; empty if unknown."""
        return f"{self.file}:{self.line}" if self.file else ""

    def __str__(self) -> str:
        return ", ".join(part for part in (reasons.describe(self.reason), self.place) if part)


class DropEvents:
    """Collects the drop notifications of a node while its context is open; call `drain` ten times a second.

    It hears only programs that were compiled with DROP_NOTIFY, as they are by default. Entering it raises what
    Monitor raises: MapNotLoaded, MonitorBusy.
    """

    def __init__(self, node: Node) -> None:
        self._monitor = Monitor(node, pages=RING_PAGES, wakes=False)
        self._stack = ExitStack()
        self._events: list[DropEvent] = []
        self._refusals: Counter[int] = Counter()
        self._unknown = 0

    def __enter__(self) -> Self:
        self._stack.enter_context(self._monitor)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @property
    def lost(self) -> int:
        """Messages, of drops or of something else, that did not fit the rings until now."""
        return self._monitor.lost

    @property
    def unknown(self) -> int:
        """Messages of drops and of policies, up to the last `drain`, whose version is none that we know."""
        return self._unknown

    @property
    def events(self) -> tuple[DropEvent, ...]:
        """The drops up to the last `drain`, in the order of their times."""
        return tuple(sorted(self._events, key=lambda event: event.time_ns))

    @property
    def refusals(self) -> Counter[int]:
        """How often policies have reported up to the last `drain` that they refuse a packet, by the drop's reason."""
        return self._refusals.copy()

    def drain(self) -> None:
        """Read what the programs have written since the last time."""
        for sample in self._monitor.samples(0.0):
            event = decode(sample.data, sample.time_ns)
            if event is not None:
                self._events.append(event)
            elif reason := refusal(sample.data):
                self._refusals[reason] += 1
            elif sample.data[:1] in (_DROP, _VERDICT) and notifications.is_of_unknown_version(sample.data):
                self._unknown += 1


def refusal(data: bytes) -> int:
    """Return why a policy refuses a packet; 0 if the message is no policy verdict, is cut off, or allows the packet."""
    if data[:1] != _VERDICT or notifications.body_size(data) is None:
        return 0
    return max(-PolicyVerdictNotify.unpack(data).verdict, 0)


def decode(data: bytes, time_ns: int) -> DropEvent | None:
    """Decode a message that was written at `time_ns`; None if it is no drop notification, or is cut off."""
    size = notifications.body_size(data) if data[:1] == _DROP else None
    if size is None:
        return None
    found = DropNotify.unpack(data)
    head = found.header
    packet = decode_frame(data[size : size + head.len_cap])
    file = (source_file(found) or f"file {found.file}") if found.file else ""
    return DropEvent(time_ns, head.subtype, file, found.line, head.source, found.ifindex, packet)

"""What became of the traffic: the fate of every packet, what a hitless reload must not show, and when it was sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datapath.base.shallow import shallow
from lab.system.words import plural
from lab.traffic.flows import Protocol

Direction = Literal["request", "reply", "exchange"]
"""Which of the two packets; `exchange` where only the source is seen (ICMP echo, a whole connection)."""

Kind = Literal[
    "lost",
    "duplicate",
    "reordered",
    "detour",
    "late",
    "corrupted",
    "leaked",
    "icmp-error",
    "socket-drop",
    "reset",
    "stall",
    "retransmit",
    "zero-window",
]
"""What can be found. `detour`: another TTL or hop limit than that of the first packet in this direction, so another
path. `reordered`: later than a packet with a higher number (RFC 4737). `leaked`: it arrived although it is denied.
`socket-drop`: our own socket dropped it, so the measurement has failed, not the path."""

KINDS: frozenset[str] = frozenset(get_args(Kind))

OTHER_PATH: frozenset[Kind] = frozenset({"reordered", "detour"})
"""What is no finding where the path is changed on purpose."""

_TEXTS: Mapping[Kind, str] = {
    "duplicate": "{} duplicates",
    "reordered": "{} reordered",
    "detour": "{} took another path",
    "late": "{} held too long",
    "corrupted": "{} differ from what was sent",
    "leaked": "{} of {sent} packets passed although they are denied",
    "icmp-error": "{} unexpected ICMP errors",
    "socket-drop": "{} dropped by the socket of the receiver",
    "reset": "{} connections broken",
    "stall": "{} stalls",
    "retransmit": "{} segments retransmitted",
    "zero-window": "{} times the receiver's window was closed",
}


@dataclass(frozen=True, slots=True)
class LostPacket:
    """A packet that never arrived. `sent_ns` (CLOCK_MONOTONIC) is when this very packet, request or reply, was sent.

    `error` names the errno if sending it failed already (ENETUNREACH while a route is missing), else it is empty. Of a
    TCP connection it is a lost segment: `number` is the first record that may have been in it, `sent_ns` when that
    record was sent.
    """

    number: int
    sent_ns: int
    direction: Direction
    error: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a packet or a connection; `at_ns` (CLOCK_MONOTONIC) is when that packet was sent."""

    kind: Kind
    at_ns: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Delays:
    """The distribution of a flow's delays, in nanoseconds; the percentiles are upper bounds, at most 1/8 too high.

    Of UDP it is the time from a request's sending to its arrival plus that of its reply, as the kernel saw them: what a
    packet waits in a socket for the engine is left out. `worst_sent_ns` is when the slowest packet was sent. `buckets`
    are (upper bound, packets).
    """

    count: int = 0
    p50_ns: int = 0
    p99_ns: int = 0
    p999_ns: int = 0
    worst_ns: int = 0
    worst_sent_ns: int = 0
    buckets: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Connections:
    """What TCP_INFO says of a flow's connections, both ends together.

    `retransmits` are segments that were sent again, `spurious` those of them that the receiver had already: on a busy
    machine an acknowledgement can come too late.
    """

    opened: int
    bytes_sent: int
    bytes_received: int
    retransmits: int
    spurious: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a hitless reload must not show; `at` are the times (CLOCK_MONOTONIC) of the packets concerned."""

    flow: str
    kind: Kind
    text: str
    at: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.flow}: {self.text}"


@dataclass(frozen=True, slots=True)
class FlowReport:
    """What became of the packets of one flow; of TCP, of its records.

    Every request sent is exactly one of: received (its reply came back), lost, or in flight (none after stop()), unless
    the flow is `denied`: then only what the sender's kernel refused is lost. `delivered` requests arrived at the
    target, as far as that is seen. `strays` are foreign packets. `connections` is None unless the flow is TCP.
    """

    name: str
    protocol: Protocol
    sent: int
    delivered: int
    received: int
    in_flight: int
    lost: tuple[LostPacket, ...] = ()
    events: tuple[Event, ...] = ()
    delays: Delays = Delays()
    denied: bool = False
    strays: int = 0
    connections: Connections | None = None

    def count(self, kind: Kind) -> int:
        """Return how often this happened; losses are counted as well."""
        return len(self.lost) if kind == "lost" else sum(1 for event in self.events if event.kind == kind)

    def findings(self, *, other_path: bool = False) -> Iterator[Finding]:
        """Yield one finding for each kind; with `other_path`, none of OTHER_PATH."""
        if self.lost:
            yield Finding(self.name, "lost", self._losses(), tuple(sorted(p.sent_ns for p in self.lost)))
        for kind in dict.fromkeys(event.kind for event in self.events):
            if other_path and kind in OTHER_PATH:
                continue
            found = [event for event in self.events if event.kind == kind]
            text = _TEXTS[kind].format(len(found), sent=self.sent)
            details = dict.fromkeys(event.text for event in found if event.text)
            text += f": {'; '.join(list(details)[:3])}" if details else ""
            yield Finding(self.name, kind, text, tuple(sorted(event.at_ns for event in found)))

    def _losses(self) -> str:
        first = min(self.lost, key=lambda packet: packet.sent_ns)
        errors = dict.fromkeys(packet.error for packet in self.lost if packet.error)
        reason = f" ({', '.join(errors)})" if errors else ""
        is_segment = first.direction != "exchange" and self.protocol == "tcp"
        lost = plural(len(self.lost), "segment") if is_segment else f"{len(self.lost)} of {plural(self.sent, 'packet')}"
        return f"{lost} lost{reason}, the first is {first.direction} {first.number}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON's own types; `from_json` is the inverse."""
        lists = {"lost": tuple(map(shallow, self.lost)), "events": tuple(map(shallow, self.events))}
        connections = None if self.connections is None else shallow(self.connections)
        return shallow(self) | lists | {"delays": shallow(self.delays), "connections": connections}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FlowReport:
        """Build a report from the JSON values of one."""
        delays = {**data["delays"], "buckets": tuple(tuple(bucket) for bucket in data["delays"]["buckets"])}
        values = {
            "lost": tuple(LostPacket(**packet) for packet in data["lost"]),
            "events": tuple(Event(**event) for event in data["events"]),
            "delays": Delays(**delays),
            "connections": Connections(**data["connections"]) if data["connections"] else None,
        }
        return cls(**{**data, **values})


@dataclass(frozen=True, slots=True)
class Pause:
    """A time in which the engine should have run and did not: what happened then has not been seen."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """The account of all flows from `started_ns` to `stopped_ns` (CLOCK_MONOTONIC).

    `starved` are the times without a verdict, because the engine got no CPU. `longest_pause_ns` is the longest time
    between two rounds of sending: a gap in the path that is shorter can have gone unseen. `late_after_ns` is the bound
    beyond which a packet was held too long. `cpu_ns` is what the engine has cost.
    """

    started_ns: int
    stopped_ns: int
    longest_pause_ns: int
    cpu_ns: int
    late_after_ns: int
    starved: tuple[Pause, ...]
    flows: tuple[FlowReport, ...]

    @property
    def sent(self) -> int:
        return sum(flow.sent for flow in self.flows)

    @property
    def received(self) -> int:
        return sum(flow.received for flow in self.flows)

    @property
    def lost(self) -> int:
        """Packets and TCP segments that never arrived."""
        return sum(len(flow.lost) for flow in self.flows)

    @property
    def denied(self) -> dict[str, int]:
        """By denied flow, how many packets the policy must have dropped: all that left and did not arrive."""
        return {flow.name: flow.sent - len(flow.lost) - flow.count("leaked") for flow in self.flows if flow.denied}

    @property
    def starved_ns(self) -> int:
        return sum(pause.end_ns - pause.start_ns for pause in self.starved)

    def flow(self, name: str) -> FlowReport:
        """Return the report of the flow of that name; KeyError if there is none."""
        return {flow.name: flow for flow in self.flows}[name]

    def lost_between(self, start_ns: int, end_ns: int) -> list[tuple[str, LostPacket]]:
        """Return (flow, packet) for the losses sent in [start_ns, end_ns]: those of one step of a reload."""
        return [(f.name, packet) for f in self.flows for packet in f.lost if start_ns <= packet.sent_ns <= end_ns]

    def findings(self, *, other_path: bool = False) -> list[Finding]:
        """Return what went wrong on every flow, none after a hitless reload.

        With `other_path` the path was changed on purpose: another hop limit, or overtaking, is then no finding.
        """
        return [finding for flow in self.flows for finding in flow.findings(other_path=other_path)]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON's own types; `from_json` is the inverse."""
        lists = {"starved": tuple(map(shallow, self.starved)), "flows": tuple(flow.to_json() for flow in self.flows)}
        return shallow(self) | lists

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrafficReport:
        """Build a report from what `to_json` made of one."""
        flows: Iterable[Mapping[str, Any]] = data["flows"]
        values = {
            "starved": tuple(Pause(**pause) for pause in data["starved"]),
            "flows": tuple(FlowReport.from_json(flow) for flow in flows),
        }
        return cls(**{**data, **values})

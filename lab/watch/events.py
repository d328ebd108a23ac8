"""Decoder of the messages in cilium_events, which prints them as `cilium monitor` does.

The layouts are those of the reference commit (bpf/lib/common.h, drop.h, trace.h, policy_log.h), the words those of
pkg/monitor. A message is followed by the beginning of its packet, which may be cut off anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab.abi import notifications, reasons
from lab.abi.conntrack import ConnState
from lab.abi.notifications import DropNotify, PolicyVerdictNotify, TraceNotify, TracePoint, source_file
from lab.abi.policymap import PolicyMatch
from lab.watch.packet import summary

_POINTS: dict[int, str] = {
    TracePoint.TO_LXC: "-> endpoint {}",
    TracePoint.TO_PROXY: "-> proxy",
    TracePoint.TO_HOST: "-> host from",
    TracePoint.TO_STACK: "-> stack",
    TracePoint.TO_OVERLAY: "-> overlay",
    TracePoint.FROM_LXC: "<- endpoint {}",
    TracePoint.FROM_PROXY: "<- proxy",
    TracePoint.FROM_HOST: "<- host",
    TracePoint.FROM_STACK: "<- stack",
    TracePoint.FROM_OVERLAY: "<- overlay",
    TracePoint.FROM_NETWORK: "<- network",
    TracePoint.TO_NETWORK: "-> network",
}
_STATES: dict[int, str] = {state: state.name.lower() for state in ConnState if state != ConnState.UNTRACKED}
_MATCHES: dict[int, str] = {
    PolicyMatch.NONE: "none",
    PolicyMatch.L3_ONLY: "L3-Only",
    PolicyMatch.L3_L4: "L3-L4",
    PolicyMatch.L4_ONLY: "L4-Only",
    PolicyMatch.ALL: "all",
    PolicyMatch.L3_PROTO: "L3-Proto",
    PolicyMatch.PROTO_ONLY: "Proto-Only",
}
_DIRECTIONS = {1: "ingress", 2: "egress"}
_BODIES: dict[int, type[DropNotify | TraceNotify | PolicyVerdictNotify]] = {
    notifications.NOTIFY_DROP: DropNotify,
    notifications.NOTIFY_TRACE: TraceNotify,
    notifications.NOTIFY_POLICY_VERDICT: PolicyVerdictNotify,
}
# In a trace, a bit beside the state: the packet was encrypted.
_ENCRYPTED = 0x80


@dataclass(frozen=True, slots=True)
class Drop:
    """A dropped packet: `endpoint` is that of the program, `destination` the local one (0 if unknown).

    `file` and `line` are the place of the decision in our programs, and of the notification in Cilium's.
    """

    reason: int
    endpoint: int
    hash: int
    length: int
    source_identity: int
    destination_identity: int
    destination: int
    ifindex: int
    file: str
    line: int
    packet: str

    def __str__(self) -> str:
        words = reasons.describe(self.reason)
        return (
            f"xx drop ({words}) flow {self.hash:#x} to endpoint {self.destination}, ifindex {self.ifindex}, "
            f"file {self.file}:{self.line}, identity {self.source_identity}->{self.destination_identity}: {self.packet}"
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced packet: `point` is the observation point, `state` that of its connection."""

    point: int
    endpoint: int
    hash: int
    length: int
    source_identity: int
    destination_identity: int
    destination: int
    state: str
    ifindex: int
    packet: str

    def __str__(self) -> str:
        point = _POINTS.get(self.point, f"-> {self.point}")
        endpoint = self.destination if self.point == TracePoint.TO_LXC else self.endpoint
        return (
            f"{point.format(endpoint)} flow {self.hash:#x}, "
            f"identity {self.source_identity}->{self.destination_identity} state {self.state} "
            f"ifindex {self.ifindex}: {self.packet}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of an endpoint's policy on a packet; `reason` is the drop reason, 0 if it is allowed."""

    endpoint: int
    hash: int
    length: int
    remote_identity: int
    reason: int
    direction: str
    protocol: int
    port: int
    match: str
    packet: str

    def __str__(self) -> str:
        return (
            f"Policy verdict log: flow {self.hash:#x} local EP ID {self.endpoint}, remote ID {self.remote_identity}, "
            f"proto {self.protocol}, {self.direction}, action {'deny' if self.reason else 'allow'}, "
            f"match {self.match}, {self.packet}"
        )


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages that were lost because the reader was too slow."""

    count: int
    cpu: int

    def __str__(self) -> str:
        return f"CPU {self.cpu}: Lost {self.count} events"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of another type, or a truncated one."""

    type: int
    length: int

    def __str__(self) -> str:
        return f"unknown event {self.type}, {self.length} bytes"


Event = Drop | Trace | Verdict | Lost | Unknown


def decode(data: bytes) -> Event:
    """Decode a message and the packet that follows it; Unknown if that is impossible."""
    kind = _BODIES.get(data[0] if data else 0)
    size = notifications.body_size(data)
    if kind is None or size is None:
        return Unknown(data[0] if data else 0, len(data))
    found = kind.unpack(data)
    head = found.header
    packet = summary(data[size : size + head.len_cap])
    if isinstance(found, DropNotify):
        labels = found.src_label, found.dst_label, found.dst_id
        place = source_file(found) or f"unknown({found.file})", found.line
        return Drop(head.subtype, head.source, head.hash, head.len_orig, *labels, found.ifindex, *place, packet)
    if isinstance(found, TraceNotify):
        labels = found.src_label, found.dst_label, found.dst_id
        state = _STATES.get(found.reason & ~_ENCRYPTED, "unknown")
        return Trace(head.subtype, head.source, head.hash, head.len_orig, *labels, state, found.ifindex, packet)
    return Verdict(
        head.source,
        head.hash,
        head.len_orig,
        remote_identity=found.remote_label,
        # Above zero it is the port of a proxy.
        reason=max(-found.verdict, 0),
        direction=_DIRECTIONS.get(found.dir, "?"),
        protocol=found.protocol,
        port=found.dst_port,
        match=_MATCHES.get(found.match_type, "?"),
        packet=packet,
    )


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object; `event` is its type."""
    fields: Mapping[str, Any] = asdict(event)
    words = {"event": type(event).__name__.lower()}
    if isinstance(event, Drop):
        words["meaning"] = reasons.describe(event.reason)
    if isinstance(event, Trace):
        words["where"] = _POINTS.get(event.point, "?").format("").strip()
    return words | dict(fields)

"""Traffic as values: which flows there are, and what became of every packet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from datapath.errors import ReloadlabError

Protocol = Literal["udp", "tcp"]
RequestOrReply = Literal["request", "reply"]


class TrafficError(ReloadlabError):
    """Traffic that cannot run: a flow that makes no sense, an address that is not there, an end that never answers."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Requests from source to target, each answered by a reply: so it tests both directions.

    `source_ns` and `target_ns` are paths of network namespaces (nsfs files). The target listens on `port`, the source
    takes a port of the kernel's choice. Flows may share a target.
    """

    name: str
    source_ns: str
    source_ip: str
    target_ns: str
    target_ip: str
    protocol: Protocol = "udp"
    port: int = 7007


def check_flows(flows: Sequence[Flow]) -> None:
    """Raise TrafficError for flows that cannot work, before any process or socket is made for them."""
    names = [flow.name for flow in flows]
    for flow in flows:
        if names.count(flow.name) > 1:
            raise TrafficError(f"flow {flow.name}: the name is taken twice")
        if flow.protocol not in ("udp", "tcp"):
            raise TrafficError(f"flow {flow.name}: protocol {flow.protocol!r} is neither udp nor tcp")
        if not 0 < flow.port < 65536:
            raise TrafficError(f"flow {flow.name}: port {flow.port} is not within 1 to 65535")
        try:
            versions = {ip_address(flow.source_ip).version, ip_address(flow.target_ip).version}
        except ValueError as error:
            raise TrafficError(f"flow {flow.name}: {error}") from error
        if len(versions) > 1:
            raise TrafficError(f"flow {flow.name}: {flow.source_ip} and {flow.target_ip} are of different IP versions")


@dataclass(frozen=True, slots=True)
class LostPacket:
    """A packet that never arrived. `sent_ns` (CLOCK_MONOTONIC) is when this very packet, request or reply, was sent.

    `error` names the errno if sending it failed already (ENETUNREACH while a route is missing), else it is empty.
    """

    number: int
    sent_ns: int
    direction: RequestOrReply
    error: str = ""


@dataclass(frozen=True, slots=True)
class UdpReport:
    """What became of the packets of one UDP flow.

    Every request sent is exactly one of: received (its reply came back), lost, or in flight (none after stop()).
    `delivered` requests arrived at the target. A duplicate is counted and not answered. `reordered` packets came after
    one with a higher number (RFC 4737). `detours` arrived with another TTL or hop limit than the first packet of their
    direction: the path has changed. `icmp_errors` are refusals that came back by ICMP. `socket_drops` were dropped by
    our own sockets: if it is not zero, the measurement has failed, not the path. `strays` are foreign packets.
    """

    name: str
    sent: int
    delivered: int
    received: int
    in_flight: int
    lost: tuple[LostPacket, ...]
    duplicates: int
    reordered: int
    detours: int
    icmp_errors: int
    socket_drops: int
    strays: int

    def problems(self, *, other_path: bool = False) -> list[str]:
        """Return a line for everything that a hitless reload must not show.

        With `other_path` the path was changed on purpose: another hop limit, or overtaking, is then no problem.
        """
        found = []
        if self.lost:
            first = self.lost[0]
            found.append(f"{len(self.lost)} of {self.sent} packets lost, the first is {first.direction} {first.number}")
        excused = ("reordered", "detours") if other_path else ()
        for what in ("duplicates", "reordered", "detours", "icmp_errors", "socket_drops"):
            if getattr(self, what) and what not in excused:
                found.append(f"{getattr(self, what)} {what.replace('_', ' ')}")
        return [f"{self.name}: {line}" for line in found]


@dataclass(frozen=True, slots=True)
class Stall:
    """A time without progress in a TCP connection that had data under way; `end_ns` is None if it lasts."""

    start_ns: int
    end_ns: int | None


@dataclass(frozen=True, slots=True)
class Break:
    """The end of a TCP connection: the errno's name or EOF, which end saw it, and when (CLOCK_MONOTONIC)."""

    at_ns: int
    error: str
    side: Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class TcpReport:
    """What became of one TCP connection and its records.

    A record is `sent` when the kernel has taken it, `received` when its echo came back and is equal; `in_flight` in
    between. `retransmits` are segments that the kernel sent again at either end (TCP_INFO): loss that TCP has mended,
    or an acknowledgement that was late. `longest_ns` is the longest time from record to echo.
    """

    name: str
    sent: int
    received: int
    in_flight: int
    corrupted: int
    bytes_sent: int
    bytes_received: int
    retransmits: int
    longest_ns: int
    stalls: tuple[Stall, ...]
    broken: Break | None

    def problems(self) -> list[str]:
        """Return a line for everything that a hitless reload must not show; retransmits alone are no problem."""
        found = []
        if self.broken:
            found.append(f"connection broken: {self.broken.error} at the {self.broken.side}")
        if self.stalls:
            found.append(f"stalled {len(self.stalls)} times")
        if self.corrupted:
            found.append(f"{self.corrupted} echoes differ from their record")
        if self.in_flight and not self.broken:
            found.append(f"{self.in_flight} records without echo")
        return [f"{self.name}: {line}" for line in found]


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """The account of all flows from `started_ns` to `stopped_ns` (CLOCK_MONOTONIC).

    `longest_pause_ns` is the longest time between two rounds of sending: a gap in the path that is shorter can have
    gone unseen. `cpu_ns` is what the engine has cost.
    """

    started_ns: int
    stopped_ns: int
    longest_pause_ns: int
    cpu_ns: int
    udp: tuple[UdpReport, ...]
    tcp: tuple[TcpReport, ...]

    @property
    def flows(self) -> tuple[UdpReport | TcpReport, ...]:
        return (*self.udp, *self.tcp)

    @property
    def sent(self) -> int:
        return sum(flow.sent for flow in self.flows)

    @property
    def received(self) -> int:
        return sum(flow.received for flow in self.flows)

    @property
    def lost(self) -> int:
        return sum(len(flow.lost) for flow in self.udp)

    def flow(self, name: str) -> UdpReport | TcpReport:
        """Return the report of the flow of that name; KeyError if there is none."""
        return {flow.name: flow for flow in self.flows}[name]

    def lost_between(self, start_ns: int, end_ns: int) -> list[tuple[str, LostPacket]]:
        """Return (flow, packet) for the losses sent in [start_ns, end_ns]: those of one step of a reload."""
        return [(f.name, packet) for f in self.udp for packet in f.lost if start_ns <= packet.sent_ns <= end_ns]

    def problems(self, *, other_path: bool = False) -> list[str]:
        """Return a line for every trouble of every flow; empty after a hitless reload."""
        found = [line for flow in self.udp for line in flow.problems(other_path=other_path)]
        return found + [line for flow in self.tcp for line in flow.problems()]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON's own types; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrafficReport:
        """Build a report from what `to_json` made of one."""
        return cls(
            **{
                **data,
                "udp": tuple(
                    UdpReport(**{**flow, "lost": tuple(LostPacket(**packet) for packet in flow["lost"])})
                    for flow in data["udp"]
                ),
                "tcp": tuple(
                    TcpReport(
                        **{
                            **flow,
                            "stalls": tuple(Stall(**stall) for stall in flow["stalls"]),
                            "broken": Break(**flow["broken"]) if flow["broken"] else None,
                        }
                    )
                    for flow in data["tcp"]
                ),
            }
        )

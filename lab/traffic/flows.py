"""Flows as values: which packets go from where to where, and what must become of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal, get_args

from datapath.errors import ReloadlabError

Protocol = Literal["udp", "tcp", "icmp"]

LARGEST = 65_000
"""Bytes of payload: a UDP datagram, with its headers, has at most 65535."""


class TrafficError(ReloadlabError):
    """Traffic that cannot run: a flow that makes no sense, an address that is not there, an end that never answers."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Requests from source to target, each answered by a reply: so it tests both directions.

    `source_ns` and `target_ns` are paths of network namespaces (nsfs files). The target listens on `port`, the source
    takes a port of the kernel's choice; ICMP echo has no port. Flows may share a target.

    `fresh`: every few packets begin a new connection: a new source port or echo id; with TCP each record has a
    connection of its own. `sizes` are payloads in bytes, sent in turn; empty: the traffic's own size. `denied`: the
    policy must stop every packet (UDP and ICMP only); an arrival is a finding, silence is none. `refused`: nothing
    listens on `port`, and every packet (UDP only) must be answered by an ICMP error, port unreachable.
    """

    name: str
    source_ns: str
    source_ip: str
    target_ns: str
    target_ip: str
    protocol: Protocol = "udp"
    port: int = 7007
    fresh: bool = False
    sizes: tuple[int, ...] = ()
    denied: bool = False
    refused: bool = False

    @property
    def version(self) -> int:
        """The IP version, 4 or 6."""
        return ip_address(self.source_ip).version


def check_flows(flows: Sequence[Flow]) -> None:
    """Raise TrafficError for flows that cannot work, before any process or socket is made for them."""
    names = [flow.name for flow in flows]
    for flow in flows:
        if names.count(flow.name) > 1:
            raise TrafficError(f"flow {flow.name}: the name is taken twice")
        if problem := _problem(flow):
            raise TrafficError(f"flow {flow.name}: {problem}")


def _problem(flow: Flow) -> str:
    """Return why a flow cannot work; empty if it can."""
    if flow.protocol not in get_args(Protocol):
        return f"protocol {flow.protocol!r} is none of {', '.join(get_args(Protocol))}"
    if flow.protocol != "icmp" and not 0 < flow.port < 65536:
        return f"port {flow.port} is not within 1 to 65535"
    if flow.refused and (flow.protocol != "udp" or flow.denied):
        return "only packets of UDP that are not denied can be refused"
    if flow.denied and flow.protocol == "tcp":
        return "a denied flow is UDP or ICMP: a TCP segment without answer is sent again"
    for size in flow.sizes:
        if not 0 < size <= LARGEST:
            return f"a payload has 1 to {LARGEST} bytes, not {size}"
    try:
        versions = {ip_address(flow.source_ip).version, ip_address(flow.target_ip).version}
    except ValueError as error:
        return str(error)
    return f"{flow.source_ip} and {flow.target_ip} are of different IP versions" if len(versions) > 1 else ""

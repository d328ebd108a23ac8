"""The content of the datapath's maps as rows of JSON values, read from their pins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network

from datapath.base import mapnames
from datapath.base.mapnames import CT_MAPS
from datapath.reload.connections import seconds
from lab.abi import layouts, reasons, tables
from lab.abi.conntrack import TUPLE_F_IN, CtEntry, CtTuple
from lab.abi.layouts import MetricsKey, MetricsValue
from lab.abi.notifications import source_files
from lab.abi.policymap import PolicyEntry, PolicyKey
from lab.abi.tables import Codec
from lab.agent import enforcement
from lab.agent.policy import PROTOCOLS, cidrs
from lab.agent.policymaps import entries, open_policy
from lab.node.maps import MapNotLoaded, open_map, open_used
from lab.node.node import Node
from lab.node.topology import HEALTH, HOST, HOST_ENDPOINT
from lab.watch import othermaps
from lab.watch.metrics import by_place
from lab.watch.othermaps import Row

_RESERVED = {
    0: "unknown",
    1: "host",
    2: "world",
    3: "unmanaged",
    4: "health",
    5: "init",
    6: "remote-node",
    7: "kube-apiserver",
    8: "ingress",
}
_PROTOCOLS = {number: name for name, number in PROTOCOLS.items()}

_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_TUPLE_RELATED = 2


def lxc(node: Node) -> list[Row]:
    """Return cilium_lxc: the local endpoints and the addresses of the host."""
    names = {pod.endpoint_id: pod.name for pod in (node.facts.health, *node.pods)}
    with open_map(node, mapnames.ENDPOINTS) as pinned:
        rows: list[Row] = []
        for key, info in tables.ENDPOINTS.of(pinned).items(pinned):
            host = bool(info.flags & layouts.ENDPOINT_F_HOST)
            rows.append(
                {
                    "address": str(key.address),
                    "endpoint": HOST if host else names.get(info.lxc_id, "?"),
                    "id": info.lxc_id,
                    "ifindex": info.ifindex,
                    "mac": info.mac,
                    "node_mac": info.node_mac,
                }
            )
    return sorted(rows, key=lambda row: (row["id"], row["address"]))


def ipcache(node: Node) -> list[Row]:
    """Return cilium_ipcache: the identity of each address and network, and the tunnel endpoint."""
    with open_used(node, mapnames.map_names(mapnames.IPCACHE), HOST_ENDPOINT) as pinned:
        found = []
        for key, info in tables.IDENTITIES.of(pinned).items(pinned):
            network = ip_network((key.address, key.length))
            tunnel = None if info.tunnel_endpoint == layouts.NO_TUNNEL else str(info.tunnel_endpoint)
            found.append((network, info.sec_identity, tunnel))
    names = identity_names(node)
    return [
        {"network": str(network), "identity": identity, "name": names.get(identity, ""), "tunnel": tunnel}
        for network, identity, tunnel in sorted(
            found, key=lambda f: (f[0].version, f[0].network_address, f[0].prefixlen)
        )
    ]


def tunnel(node: Node) -> list[Row]:
    """Return cilium_tunnel_map: the node of each pod network."""
    with open_map(node, mapnames.TUNNEL) as pinned:
        found = [(key.network, value.node) for key, value in tables.TUNNELS.of(pinned).items(pinned)]
    found.sort(key=lambda pair: (pair[0].version, pair[0].packed))
    return [{"network": str(network), "node": str(other)} for network, other in found]


def policy(node: Node, endpoint: str | None = None) -> list[Row]:
    """Return the policy maps of all loaded endpoints, or of one; UnknownTarget if there is no such endpoint."""
    if endpoint is not None:
        node.endpoint(endpoint)
    rows: list[Row] = []
    names = identity_names(node)
    for name in (HOST, HEALTH, *(pod.name for pod in node.pods)) if endpoint is None else (endpoint,):
        number = HOST_ENDPOINT if name == HOST else node.pod(name).endpoint_id
        try:
            with open_policy(node, number) as pinned:
                found = sorted(entries(pinned, node.globals), key=lambda pair: pair[0])
        except MapNotLoaded:
            if endpoint is not None:
                raise
            continue
        rows += [_policy_row(names, name, key, entry) for key, entry in found]
    return rows


def _policy_row(names: Mapping[int, str], endpoint: str, key: PolicyKey, entry: PolicyEntry) -> Row:
    return {
        "endpoint": endpoint,
        "direction": "egress" if key.egress else "ingress",
        "identity": key.identity,
        "name": names.get(key.identity, "") if key.identity else "any",
        "protocol": _PROTOCOLS.get(key.protocol, str(key.protocol)) if key.protocol else "any",
        "port": key.port or "any",
        "verdict": "deny" if entry.deny else "allow",
        "packets": entry.packets,
        "bytes": entry.length,
    }


def metrics(node: Node) -> list[Row]:
    """Return cilium_metrics, the sum over all CPUs; `file` and `line` say where it was counted, if the map does."""
    with open_map(node, mapnames.METRICS) as pinned:
        has_places = tables.METRICS.of(pinned).key.place("line") is not None
        rows = [_metrics_row(key, value, has_places) for key, value in by_place(pinned).items()]
    return sorted(rows, key=lambda row: (row["reason"], row["direction"], row.get("file", ""), row.get("line", 0)))


def _metrics_row(key: MetricsKey, value: MetricsValue, has_places: bool) -> Row:
    row: Row = {
        "reason": key.reason,
        "meaning": reasons.describe(key.reason),
        "direction": layouts.direction_name(key.dir),
        "packets": value.count,
        "bytes": value.length,
    }
    return row | {"file": source_files(key.file) or str(key.file), "line": key.line} if has_places else row


def conntrack(
    node: Node,
    limit: int | None = None,
    *,
    address: IPv4Address | IPv6Address | None = None,
    port: int | None = None,
) -> list[Row]:
    """Return the connections of all tables, or the first `limit`; `seconds_left` is negative after the lifetime.

    With an `address` or a `port`, those that have an end there. They are sorted by protocol, addresses and ports. Only
    what is returned is decoded: a table can be large.
    """
    found: list[tuple[bytes, bytes, tables.Table[CtTuple, CtEntry]]] = []
    loaded = False
    for name in CT_MAPS:
        try:
            with open_map(node, name) as pinned:
                table = tables.CONNECTIONS.of(pinned)
                found += (
                    (key, value, table) for key, value in pinned.items() if _has_end(table.key, key, address, port)
                )
                loaded = True
        except MapNotLoaded:
            continue
    if not loaded:
        raise MapNotLoaded(node.name, CT_MAPS[0])
    # In keys of both versions the protocol is the last byte but one, and the addresses come first.
    found.sort(key=lambda item: (item[0][-2], len(item[0]), item[0]))
    now = seconds()
    return [connection(table.key.unpack(key), table.value.unpack(value), now) for key, value, table in found[:limit]]


def _has_end(layout: Codec[CtTuple], key: bytes, address: IPv4Address | IPv6Address | None, port: int | None) -> bool:
    """Tell whether a connection has this end; the bytes say of most keys that it has not, without decoding them."""
    if address is None and port is None:
        return True
    parts = (b"" if address is None else address.packed, b"" if port is None else port.to_bytes(2, "big"))
    if not all(part in key for part in parts):
        return False
    who = layout.unpack(key)
    ends = (who.source, who.sport), (who.destination, who.dport)
    return any(address in (None, ip) and port in (None, number) for ip, number in ends)


def connection(who: CtTuple, entry: CtEntry, now: int) -> Row:
    """Return an entry of a connection table of either IP version; `now` is the datapath's clock in seconds.

    Where the entry counts both directions together, so does the row.
    """
    counters = {
        "rx_packets": entry.rx_packets,
        "rx_bytes": entry.rx_length,
        "tx_packets": entry.tx_packets,
        "tx_bytes": entry.tx_length,
    }
    if entry.packets is not None:
        counters = {"packets": entry.packets, "bytes": entry.length or 0}
    return {
        "protocol": _PROTOCOLS.get(who.protocol, str(who.protocol)),
        "direction": "ingress" if who.flags & TUPLE_F_IN else "egress",
        "related": bool(who.flags & _TUPLE_RELATED),
        "source": _with_port(who.source, who.sport),
        "destination": _with_port(who.destination, who.dport),
        "identity": entry.src_sec_id,
        "seconds_left": entry.lifetime - now,
        "state": sorted(entry.names),
        **counters,
        "tx_flags": _tcp_flags(entry.tx_flags_seen),
        "rx_flags": _tcp_flags(entry.rx_flags_seen),
    }


def _tcp_flags(flags: int) -> list[str]:
    return [name for bit, name in enumerate(_TCP_FLAGS) if flags & 1 << bit]


def _with_port(address: IPv4Address | IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def identity_names(node: Node) -> dict[int, str]:
    """Return names by identity: a reserved name, the pods that have the identity, or its CIDR."""
    names = {identity: str(network) for network, identity in cidrs(enforcement.stored(node) or ()).items()}
    for pod in node.pods:
        names[pod.identity] = f"{names.get(pod.identity, '')} {pod.name}".strip()
    for peer in node.peers:
        for pod in peer.pods:
            names[pod.identity] = f"{names.get(pod.identity, '')} {peer.name}/{pod.name}".strip()
    return names | _RESERVED


MAPS: dict[str, Callable[[Node], list[Row]]] = {
    "ipcache": ipcache,
    "lxc": lxc,
    "policy": policy,
    "ct": conntrack,
    "metrics": metrics,
    "tunnel": tunnel,
    "node": othermaps.nodes,
    "auth": othermaps.auth,
    "l2": othermaps.l2_responder,
    "ratelimit": othermaps.rate_limits,
}
"""The readers by their names on the command line."""

"""The content of maps that our own sources lack, as rows of JSON values: see mapview for the others."""

from __future__ import annotations

from typing import Any

from datapath.base import mapnames
from lab.abi import tables
from lab.node.maps import find_map, open_map, open_used
from lab.node.node import Node
from lab.node.topology import HOST_ENDPOINT

Row = dict[str, Any]

_USAGES = {1: "icmpv6", 2: "events"}
"""What is limited (bpf/lib/ratelimit.h): ICMPv6 errors of an interface, or messages of cilium_events."""
_ICMPV6 = 1


def nodes(node: Node) -> list[Row]:
    """Return cilium_node_map: the id of each address of a node, and the SPI of IPsec where the map has it."""
    with open_used(node, (mapnames.NODES_V2, mapnames.NODES), HOST_ENDPOINT) as pinned:
        table = tables.NODES.of(pinned)
        has_spi = table.value.place("spi") is not None
        found = sorted(table.items(pinned), key=lambda item: (item[0].address.version, item[0].address.packed))
    return [
        {"address": str(key.address), "id": value.id} | ({"spi": value.spi} if has_spi else {}) for key, value in found
    ]


def auth(node: Node) -> list[Row]:
    """Return cilium_auth_map: which identities have authenticated each other, and until when."""
    with open_map(node, mapnames.AUTH) as pinned:
        rows: list[Row] = [
            {
                "local": key.local,
                "remote": key.remote,
                "node": key.node_id,
                "type": key.auth_type,
                "expiration": value.expiration,
            }
            for key, value in tables.AUTHENTICATIONS.of(pinned).items(pinned)
        ]
    return sorted(rows, key=lambda row: (row["local"], row["remote"], row["node"], row["type"]))


def l2_responder(node: Node) -> list[Row]:
    """Return cilium_l2_responder_v4: the addresses that are announced, and how often each was asked for."""
    with open_map(node, mapnames.L2_RESPONDER) as pinned:
        found = sorted(
            tables.ANNOUNCEMENTS.of(pinned).items(pinned), key=lambda item: (item[0].address, item[0].ifindex)
        )
    return [{"address": str(key.address), "ifindex": key.ifindex, "responses": value.responses} for key, value in found]


def rate_limits(node: Node) -> list[Row]:
    """Return cilium_ratelimit: the tokens that are left; `dropped` for want of one, if that is counted."""
    with open_map(node, mapnames.RATELIMIT) as pinned:
        found = list(tables.RATE_LIMITS.of(pinned).items(pinned))
    dropped = _dropped(node)
    rows: list[Row] = [
        {
            "usage": _usage(key.usage or _ICMPV6),
            "ifindex": key.ifindex,
            "tokens": value.tokens,
            "last_topup": value.last_topup,
        }
        for key, value in found
    ]
    if dropped is not None:
        rows = [{**row, "dropped": dropped.get(row["usage"], 0)} for row in rows]
    return sorted(rows, key=lambda row: (row["usage"], row["ifindex"]))


def _dropped(node: Node) -> dict[str, int] | None:
    """Return what was left out by what is limited, of all interfaces together; None if it is not counted."""
    opened = find_map(node, mapnames.RATELIMIT_METRICS)
    if opened is None:
        return None
    with opened:
        return {_usage(key.usage): value.dropped for key, value in tables.RATE_LIMIT_METRICS.of(opened).items(opened)}


def _usage(number: int) -> str:
    return _USAGES.get(number, str(number))

"""Connections in the layout of another map: each field that both layouts have goes to its place, by its name.

So a change of the C sources, whose entries differ, forgets no connection. Other maps need no such thing: the control
plane knows what belongs into them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from datapath.base.mapnames import CONNECTIONS
from datapath.kernel.uapi import MapInfo
from datapath.load.layout import Fields, Layout, layout_of

Translate = Callable[[bytes], bytes]
"""Returns the value of an entry as another map has it."""

OUR_ENTRY: Fields = {
    **{"rx_packets": (0, 64), "rx_bytes": (64, 64), "tx_packets": (128, 64), "tx_bytes": (192, 64)},
    **{"lifetime": (256, 32), "rx_closing": (288, 1), "tx_closing": (289, 1), "nat46": (290, 1)},
    **{"lb_loopback": (291, 1), "seen_non_syn": (292, 1), "node_port": (293, 1), "proxy_redirect": (294, 1)},
    **{"dsr": (295, 1), "from_l7lb": (296, 1), "reserved1": (297, 1), "from_tunnel": (298, 1), "reserved5": (299, 5)},
    **{"rev_nat_index": (304, 16), "ifindex": (320, 16), "tx_flags_seen": (336, 8), "rx_flags_seen": (344, 8)},
    **{"src_sec_id": (352, 32), "last_tx_report": (384, 32), "last_rx_report": (416, 32)},
}
"""struct ct_entry of our own sources, of whose maps the kernel is told no types (bpf/lib/conntrack.h)."""

_PORTS_AND_FLAGS = {"dport": (0, 16), "sport": (16, 16), "nexthdr": (32, 8), "flags": (40, 8)}
_AFTER_ADDRESSES = 6


def translation(name: str, old: MapInfo, new: MapInfo) -> Translate | None:
    """Return what makes a value of `old` one of `new`; None if these are no maps of connections with the same keys.

    A field that shares its place with another, in a union, is left out: nothing tells which of them it is. It begins
    at 0, as a field does that the old layout does not have.
    """
    if not name.startswith(CONNECTIONS):
        return None
    (old_key, old_value), (new_key, new_value) = (_layout(info) for info in (old, new))
    if old.key_size != new.key_size or old_key != new_key:
        return None
    size, moves = new.value_size, _moves(old_value, new_value)

    def translate(value: bytes) -> bytes:
        number, found = int.from_bytes(value, "little"), 0
        for shift, mask in moves.items():
            bits = number & mask
            found |= bits << shift if shift >= 0 else bits >> -shift
        return found.to_bytes(size, "little")

    return translate


def our_tuple(size: int) -> Fields:
    """Return the fields of a key of our own sources (struct ipv4_ct_tuple and ipv6_ct_tuple), which has this size."""
    width = 8 * (size - _AFTER_ADDRESSES) // 2
    rest = {name: (2 * width + at, bits) for name, (at, bits) in _PORTS_AND_FLAGS.items()}
    return {"daddr": (0, width), "saddr": (width, width), **rest}


def _layout(info: MapInfo) -> Layout:
    known = layout_of(info)
    return (our_tuple(info.key_size), OUR_ENTRY) if known is None else known


def _moves(old: Fields, new: Fields) -> Mapping[int, int]:
    """Return the bits of a value that are kept, as a mask, by how far they move."""
    moves: dict[int, int] = defaultdict(int)
    there = dict(_alone(new))
    for name, (at, bits) in _alone(old):
        if name in there and there[name][1] == bits:
            moves[there[name][0] - at] |= (1 << bits) - 1 << at
    return moves


def _alone(fields: Fields) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the fields that share their place with no other."""
    for name, (at, bits) in fields.items():
        others = (place for each, place in fields.items() if each != name)
        if not any(at < start + size and start < at + bits for start, size in others):
            yield name, (at, bits)

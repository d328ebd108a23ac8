"""Whether the entries of a pinned map mean what an object takes them for: fields by name and place, as BTF tells them.

Sizes alone do not tell: policy entries of Cilium 1.16 are as large as those before, and have other fields. Compared
are only the maps whose entries outlive a load: those of the control plane, and connections.

Connections are nobody's to write anew, so that releases agree on where their fields lie: what a release has no use for
stays where it was, under another name, and counters may count something else. Their tables are the same if what both
have lies at the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from datapath.base.mapnames import CONNECTIONS, WRITTEN_BY_AGENT, is_policy_map
from datapath.errors import MapDifference
from datapath.kernel import bpf
from datapath.kernel.uapi import MapInfo, MapTypes
from datapath.object.btf import Btf, TypeKind, parse
from datapath.object.spec import CollectionSpec, MapSpec

Fields = Mapping[str, tuple[int, int]]
"""Offset and size in bits of each field of a struct, by name."""

OUR_CONNECTION: Fields = {
    **{"rx_packets": (0, 64), "rx_bytes": (64, 64), "tx_packets": (128, 64), "tx_bytes": (192, 64)},
    **{"lifetime": (256, 32), "rx_closing": (288, 1), "tx_closing": (289, 1), "nat46": (290, 1)},
    **{"lb_loopback": (291, 1), "seen_non_syn": (292, 1), "node_port": (293, 1), "proxy_redirect": (294, 1)},
    **{"dsr": (295, 1), "from_l7lb": (296, 1), "reserved1": (297, 1), "from_tunnel": (298, 1), "reserved5": (299, 5)},
    **{"rev_nat_index": (304, 16), "ifindex": (320, 16), "tx_flags_seen": (336, 8), "rx_flags_seen": (344, 8)},
    **{"src_sec_id": (352, 32), "last_tx_report": (384, 32), "last_rx_report": (416, 32)},
}
"""struct ct_entry of our own sources, of whose maps the kernel is told no types (bpf/lib/conntrack.h)."""

_AFTER_ADDRESSES = {"dport": (0, 16), "sport": (16, 16), "nexthdr": (32, 8), "flags": (40, 8)}

_STRUCTS = (TypeKind.STRUCT, TypeKind.UNION)

Layout = tuple[Fields, Fields]
"""The fields of a map's key and value."""


def is_compared(name: str) -> bool:
    """Tell whether the map's entries are the control plane's, or connections."""
    return name in WRITTEN_BY_AGENT or name.startswith(CONNECTIONS) or is_policy_map(name)


def layout_differences(spec: CollectionSpec, item: MapSpec, info: MapInfo, *, told: bool) -> list[MapDifference]:
    """List the fields in which a map differs from its definition; `told` says that the kernel is told the latter.

    Of our own sources it is told nothing, and two such maps are alike: nothing is read. If one of both has types, what
    was made by others has the fields that these tell. A map without types that others are to use is not known to have
    their fields: it is replaced, as the control plane can write its entries anew and no program then misreads one.
    """
    if not (told or info.types) or not is_compared(item.name):
        return []
    pinned = _layout_of(item.name, info)
    if pinned is None:
        return [MapDifference(item.name, "layout", "not told", "that of the object's types")]
    if not (item.key_type and item.value_type):
        return []
    types = parsed(spec.btf)
    wanted = _fields(types, item.key_type), _fields(types, item.value_type)
    return list(_compared(item.name, pinned, wanted))


def is_same_layout(name: str, old: MapInfo, new: MapInfo) -> bool:
    """Tell whether two maps of a name have the same fields, as far as is known; if one's alone are, they differ."""
    one, other = _layout_of(name, old), _layout_of(name, new)
    return one is other if one is None or other is None else not any(_compared(name, one, other))


def our_tuple(size: int) -> Fields:
    """Return the fields of a connection's key in our own sources (struct ipv4_ct_tuple, ipv6_ct_tuple), by its size."""
    width = 8 * (size - 6) // 2
    rest = {name: (2 * width + at, bits) for name, (at, bits) in _AFTER_ADDRESSES.items()}
    return {"daddr": (0, width), "saddr": (width, width), **rest}


def _layout_of(name: str, info: MapInfo) -> Layout | None:
    """Return the fields of a map; None if nobody told the kernel, except for connections of our own sources."""
    if info.types is not None:
        return _pinned(info.types)
    return (our_tuple(info.key_size), OUR_CONNECTION) if name.startswith(CONNECTIONS) else None


def types_of(ident: int) -> Btf:
    """Return the types that the kernel has under an id of BTF."""
    return parsed(bpf.btf_of_id(ident))


@lru_cache(maxsize=16)
def parsed(data: bytes) -> Btf:
    """Return the types; maps of the same object have the same bytes, each with an id of its own."""
    return parse(data)


@lru_cache(maxsize=1024)
def _pinned(types: MapTypes) -> Layout:
    """Return the fields of a map in the kernel, which gives no id of BTF twice."""
    found = types_of(types.btf)
    return _fields(found, types.key), _fields(found, types.value)


def _fields(types: Btf, ident: int) -> Fields:
    """Return the fields of a type; what is no struct has none, and its size says all."""
    return types.fields(ident) if types[types.resolve(ident)].kind in _STRUCTS else {}


def _compared(name: str, pinned: Layout, wanted: Layout) -> Iterator[MapDifference]:
    for what, have, want in zip(("key", "value"), pinned, wanted, strict=True):
        for field in sorted(_shared(have, want) if name.startswith(CONNECTIONS) else have.keys() | want.keys()):
            if have.get(field) != want.get(field):
                yield MapDifference(name, f"{what}.{field}", _place(have.get(field)), _place(want.get(field)))


def _shared(one: Fields, other: Fields) -> set[str]:
    """Return the fields that both have; what is reserved has no meaning, and its names are given anew."""
    return {name for name in one.keys() & other.keys() if not name.startswith("reserved")}


def _place(place: tuple[int, int] | None) -> str:
    """Return where a field lies, for people to read."""
    if place is None:
        return "nowhere"
    offset, bits = place
    return f"at bit {offset} ({bits} bits)"

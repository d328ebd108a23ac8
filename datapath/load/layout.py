"""Whether the entries of a pinned map mean what an object takes them for: fields by name and place, as BTF tells them.

Sizes alone do not tell: policy entries of Cilium 1.16 are as large as those before, and have other fields. Compared
are only the maps whose entries outlive a load: those of the control plane, and connections.
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

_STRUCTS = (TypeKind.STRUCT, TypeKind.UNION)

Fields = Mapping[str, tuple[int, int]]
"""Offset and size in bits of each field of a struct, by name."""

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
    if info.types is None:
        return [MapDifference(item.name, "layout", "not told", "that of the object's types")]
    if not (item.key_type and item.value_type):
        return []
    types = parsed(spec.btf)
    wanted = _fields(types, item.key_type), _fields(types, item.value_type)
    return list(_compared(item.name, _pinned(info.types), wanted))


def is_same_layout(old: MapInfo, new: MapInfo) -> bool:
    """Tell whether two maps have the same fields, as far as the kernel knows; if it knows one's alone, they differ."""
    return layout_of(old) == layout_of(new)


def layout_of(info: MapInfo) -> Layout | None:
    """Return the fields of a map, None if the kernel knows no types of it."""
    return None if info.types is None else _pinned(info.types)


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
        for field in sorted(have.keys() | want.keys()):
            if have.get(field) != want.get(field):
                yield MapDifference(name, f"{what}.{field}", _place(have.get(field)), _place(want.get(field)))


def _place(place: tuple[int, int] | None) -> str:
    """Return where a field lies, for people to read."""
    if place is None:
        return "nowhere"
    offset, bits = place
    return f"at bit {offset} ({bits} bits)"

"""Maps of recorded layouts in the kernel, which is given BTF that says what the recorded one does."""

from __future__ import annotations

import os
import struct

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from datapath.kernel.map import Map
from datapath.kernel.uapi import MapBtf, MapInfo
from datapath.object.btf import MAGIC, TypeKind
from datapath.object.spec import CollectionSpec, MapSpec
from lab.abi.record import Record
from tests.lab.abi.recorded import Layout, layouts_of

_TYPES = {
    "cilium_ipcache": MapType.LPM_TRIE,
    "cilium_policy": MapType.LPM_TRIE,
    "cilium_policystats": MapType.LRU_PERCPU_HASH,
    "cilium_metrics": MapType.PERCPU_HASH,
    "cilium_ct": MapType.LRU_HASH,
}
"""Types of maps by the beginnings of their names, the longest of which counts; the others are hashes."""

_ENTRIES = 256
_NO_PREALLOC = 1
_BYTE, _INDEX = 1, 2


def create(name: str, layout: Layout, *, told: bool = True, like: MapInfo | None = None) -> Map:
    """Create a map that has these types, or, if they are not `told`, their sizes alone; the caller closes it.

    It has a few entries, or is as large as another map.
    """
    key, value = layout
    shape = (_type_of(name), _ENTRIES, _flags_of(name)) if like is None else (like.type, like.max_entries, like.flags)
    types = Types()
    ids = types.struct(key), types.struct(value)
    fd = bpf.btf_load(types.section())
    try:
        made = bpf.map_create(
            *(shape[0], key.size, value.size, shape[1]),
            flags=shape[2],
            name=name,
            btf=MapBtf(fd, *ids) if told else None,
        )
    finally:
        os.close(fd)
    return Map.of(made, name)


def object_of(release: str, name: str, recorded: str | None = None) -> CollectionSpec:
    """Return an object that defines one map, of a recorded one's layout, as that release does."""
    key, value = layouts_of(release)[recorded or name]
    types = Types()
    item = MapSpec(
        name=name,
        type=_type_of(name),
        key_size=key.size,
        value_size=value.size,
        max_entries=_ENTRIES,
        flags=_flags_of(name),
        pinned=True,
        key_type=types.struct(key),
        value_type=types.struct(value),
    )
    return CollectionSpec(release, {name: item}, {}, {}, b"", "", btf=types.section())


def _type_of(name: str) -> MapType:
    """Return the type that a map of this name has in all releases."""
    return next((_TYPES[each] for each in sorted(_TYPES, key=len, reverse=True) if name.startswith(each)), MapType.HASH)


def _flags_of(name: str) -> int:
    return _NO_PREALLOC if _type_of(name) == MapType.LPM_TRIE else 0


class Types:
    """A .BTF section in the making: integers, arrays of bytes, and structs of them."""

    def __init__(self) -> None:
        self._strings = bytearray(b"\0")
        self._types = bytearray()
        self._count = 0
        self._sized: dict[int, int] = {}
        for size in (1, 4, 2, 8):
            self._sized[size] = self._add(f"u{8 * size}", TypeKind.INT, 0, size, struct.pack("<I", 8 * size))

    def struct(self, record: Record) -> int:
        """Add a struct; return its type id. What was no struct becomes an integer or bytes of the same size."""
        if not record.fields:
            return self._of_size(record.size)
        members = sorted(record.fields.items(), key=lambda item: (item[1][0], -item[1][1]))
        rows = b"".join(self._member(name, *place) for name, place in members)
        return self._add(record.struct, TypeKind.STRUCT, len(members), record.size, rows, flag=1)

    def section(self) -> bytes:
        """Return the section."""
        size = len(self._types)
        head = struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, size, size, len(self._strings))
        return head + bytes(self._types) + bytes(self._strings)

    def _member(self, name: str, offset: int, bits: int) -> bytes:
        whole = offset % 8 == 0 and bits % 8 == 0
        ident = self._of_size(bits // 8) if whole else self._sized[4]
        return struct.pack("<III", self._string(name), ident, (0 if whole else bits << 24) | offset)

    def _of_size(self, size: int) -> int:
        if size not in self._sized:
            array = struct.pack("<III", self._sized[_BYTE], self._sized[4], size)
            self._sized[size] = self._add("", TypeKind.ARRAY, 0, 0, array)
        return self._sized[size]

    def _add(self, name: str, kind: TypeKind, vlen: int, size: int, extra: bytes, *, flag: int = 0) -> int:
        self._types += struct.pack("<III", self._string(name), flag << 31 | kind << 24 | vlen, size) + extra
        self._count += 1
        return self._count

    def _string(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text) - 1

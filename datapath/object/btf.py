"""A reader of .BTF sections: map definitions (.maps), C struct layouts, external symbols, and what the kernel takes.

Format: Documentation/bpf/btf.rst, include/uapi/linux/btf.h. Little endian only, as the objects are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_ARRAY = struct.Struct("<III")
_POINTER_SIZE = 8
_EXTERN = 2
"""Linkage of a variable or function that the object only declares (BTF_VAR_GLOBAL_EXTERN, BTF_FUNC_EXTERN)."""
_SPECIAL = frozenset(
    (
        *("bpf_spin_lock", "bpf_res_spin_lock", "bpf_timer", "bpf_wq", "bpf_task_work"),
        *("bpf_list_head", "bpf_list_node", "bpf_rb_root", "bpf_rb_node", "bpf_refcount"),
    )
)
"""Structs that the kernel looks for in a map's value (btf_get_field_type)."""
_KPTR_TAGS = frozenset(("kptr", "kptr_untrusted", "percpu_kptr", "uptr"))


class TypeKind(IntEnum):
    """BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_MODIFIERS = frozenset((TypeKind.TYPEDEF, TypeKind.VOLATILE, TypeKind.CONST, TypeKind.RESTRICT, TypeKind.TYPE_TAG))
_SIZED = frozenset(
    (TypeKind.INT, TypeKind.STRUCT, TypeKind.UNION, TypeKind.ENUM, TypeKind.FLOAT, TypeKind.ENUM64, TypeKind.DATASEC)
)
# Bytes that follow struct btf_type: once, and per vlen.
_EXTRA = {
    TypeKind.INT: (4, 0),
    TypeKind.ARRAY: (12, 0),
    TypeKind.STRUCT: (0, 12),
    TypeKind.UNION: (0, 12),
    TypeKind.ENUM: (0, 8),
    TypeKind.FUNC_PROTO: (0, 8),
    TypeKind.VAR: (4, 0),
    TypeKind.DATASEC: (0, 12),
    TypeKind.DECL_TAG: (4, 0),
    TypeKind.ENUM64: (0, 12),
}


class BtfError(ValueError):
    """BTF that cannot be read; the reader of the object turns it into an ObjectError with the path."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union; the offset counts bits from the struct's start, `bits` is 0 if no bit-field."""

    name: str
    type: int
    offset: int
    bits: int


class Type(NamedTuple):
    """struct btf_type: `value` is a size in bytes or a type id, `extra` where its further data begins.

    A tuple, since the kernel's BTF has more than 100,000 of them.
    """

    name: str
    kind: TypeKind
    vlen: int
    flag: bool
    value: int
    extra: int


class Btf:
    """The types of one .BTF section, by id; id 0 is void."""

    def __init__(self, data: bytes, types: tuple[Type, ...], index: Mapping[TypeKind, Mapping[str, int]]) -> None:
        self._data = data
        self._index = index
        self.types = types

    def __getitem__(self, ident: int) -> Type:
        try:
            return self.types[ident]
        except IndexError:
            raise BtfError(f"no type {ident}") from None

    def find(self, name: str, *kinds: TypeKind) -> int:
        """Return the id of the first type of that name and kind; BtfError if there is none."""
        for kind in kinds:
            if name in self._index[kind]:
                return self._index[kind][name]
        raise BtfError(f"no {' or '.join(k.name.lower() for k in kinds)} {name}")

    def index_of(self, name: str, kind: TypeKind) -> int | None:
        """Return the id of the first type of that name and kind, None if there is none."""
        return self._index[kind].get(name)

    def resolve(self, ident: int) -> int:
        """Follow typedefs and qualifiers to the type behind them."""
        for _ in range(len(self.types)):
            if self[ident].kind not in _MODIFIERS:
                return ident
            ident = self[ident].value
        raise BtfError(f"type {ident} refers to itself")

    def size(self, ident: int) -> int:
        """Return the size of a type in bytes."""
        count = 1
        for _ in range(len(self.types)):
            item = self[self.resolve(ident)]
            if item.kind != TypeKind.ARRAY:
                break
            ident, length = self.array(item)
            count *= length
        if item.kind == TypeKind.PTR:
            return count * _POINTER_SIZE
        if item.kind in _SIZED:
            return count * item.value
        raise BtfError(f"type {ident} ({item.kind.name.lower()} {item.name}) has no size")

    def array(self, item: Type) -> tuple[int, int]:
        """Return the element's type id and the number of elements."""
        element, _, length = _ARRAY.unpack_from(self._data, item.extra)
        return element, length

    def members(self, item: Type) -> Iterator[Member]:
        """Yield the members of a struct or union."""
        for name, ident, offset in struct.iter_unpack("<III", self._data[item.extra : item.extra + 12 * item.vlen]):
            bits = offset >> 24 if item.flag else 0
            yield Member(self.string(name), ident, offset & 0xFFFFFF if item.flag else offset, bits)

    def variables(self, item: Type) -> Iterator[tuple[int, int, int]]:
        """Yield type id, offset and size of a DATASEC's variables; the compiler leaves the offsets to the linker."""
        yield from struct.iter_unpack("<III", self._data[item.extra : item.extra + 12 * item.vlen])

    def enumerators(self, item: Type) -> Iterator[tuple[str, int]]:
        """Yield names and values of an enum, or of an enum of 64 bits."""
        layout = "<IIi" if item.kind == TypeKind.ENUM64 else "<Ii"
        size = struct.calcsize(layout)
        for name, *words in struct.iter_unpack(layout, self._data[item.extra : item.extra + size * item.vlen]):
            yield self.string(name), words[0] if len(words) == 1 else words[1] << 32 | words[0]

    def declarations(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each function with a tag (btf_decl_tag), and the tag, once for each tag."""
        for item in self.types:
            if item.kind == TypeKind.DECL_TAG and self[item.value].kind == TypeKind.FUNC:
                yield self[item.value].name, item.name

    def external(self, name: str) -> str | None:
        """Return the section of a variable or function that is declared only (.ksyms, .kconfig); None if unknown."""
        sections = [t for t in self.types if t.kind == TypeKind.DATASEC and t.name in (".ksyms", ".kconfig")]
        declared = ((t.name, self[ident].name) for t in sections for ident, _, _ in self.variables(t))
        return next((section for section, variable in declared if variable == name), None)

    def has_special_fields(self, ident: int) -> bool:
        """Tell whether the kernel has to know the type of a map's value: it holds a spin lock, a timer, a kptr."""
        seen: set[int] = set()
        todo = [ident]
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen.add(current)
            item = self[current]
            if item.kind == TypeKind.STRUCT and item.name in _SPECIAL:
                return True
            if item.kind in (TypeKind.STRUCT, TypeKind.UNION):
                todo += [member.type for member in self.members(item)]
            elif item.kind == TypeKind.ARRAY:
                todo.append(self.array(item)[0])
            elif item.kind == TypeKind.PTR:
                target = self[item.value]
                if target.kind == TypeKind.TYPE_TAG and target.name in _KPTR_TAGS:
                    return True
            elif item.kind in _MODIFIERS or item.kind == TypeKind.VAR:
                todo.append(item.value)
            elif item.kind == TypeKind.DATASEC:
                todo += [variable for variable, _, _ in self.variables(item)]
        return False

    def string(self, offset: int) -> str:
        """Return the string at an offset of the string section."""
        return _string(self._data, _strings(self._data), offset)

    def struct_layout(self, name: str) -> dict[str, tuple[int, int]]:
        """Return {field: (offset, size)} in bytes of a struct (or union, or typedef of one) by its C name.

        Members of anonymous structs and unions appear under their own names. A bit-field counts the bytes it touches.
        """
        ident = self.find(name, TypeKind.STRUCT, TypeKind.UNION, TypeKind.TYPEDEF)
        places = self.fields(ident).items()
        return {field: (start // 8, (start % 8 + bits + 7) // 8) for field, (start, bits) in places}

    def fields(self, ident: int) -> dict[str, tuple[int, int]]:
        """Return {field: (offset, size)} in bits of a struct (or union, or typedef of one).

        Members of anonymous structs and unions appear under their own names.
        """
        return dict(self._fields(self[self.resolve(ident)], 0))

    def _fields(self, item: Type, base: int) -> Iterator[tuple[str, tuple[int, int]]]:
        for member in self.members(item):
            start = base + member.offset
            inner = self[self.resolve(member.type)]
            if not member.name and inner.kind in (TypeKind.STRUCT, TypeKind.UNION):
                yield from self._fields(inner, start)
            else:
                yield member.name, (start, member.bits or 8 * self.size(member.type))


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A BTF map definition: the numbers it sets (only those), its inner map, and where `values` begins (None: nowhere).

    `key_type` and `value_type` are type ids, 0 where only a size is given.
    """

    numbers: Mapping[str, int]
    inner: MapDefinition | None
    values_offset: int | None
    key_type: int = 0
    value_type: int = 0


def parse(data: bytes) -> Btf:
    """Read a .BTF section; BtfError if it is damaged."""
    try:
        return _read(data)
    except struct.error as error:
        raise BtfError(f"truncated: {error}") from error


def map_definition(btf: Btf, variable: str) -> MapDefinition:
    """Return the definition of a map variable of .maps (tools/lib/bpf: parse_btf_map_def)."""
    item = btf[btf.resolve(btf[btf.find(variable, TypeKind.VAR)].value)]
    if item.kind != TypeKind.STRUCT:
        raise BtfError(f"map {variable} is not a struct")
    return _definition(btf, item)


def _definition(btf: Btf, item: Type, *, nested: bool = False) -> MapDefinition:
    numbers: dict[str, int] = {}
    types: dict[str, int] = {}
    inner: MapDefinition | None = None
    values: int | None = None
    for member in btf.members(item):
        target = btf[btf.resolve(member.type)]
        if member.name == "values":
            if nested:
                raise BtfError("the maps inside a map of maps cannot hold maps themselves")
            inner = _inner(btf, target)
            values = member.offset // 8
            continue
        if target.kind in (TypeKind.ENUM, TypeKind.ENUM64):
            numbers[member.name] = next((value for _, value in btf.enumerators(target)), 0)
        elif target.kind != TypeKind.PTR:
            raise BtfError(f"map attribute {member.name} is no pointer: define it with __uint or __type")
        elif member.name in ("key", "value"):
            numbers[f"{member.name}_size"] = btf.size(target.value)
            types[member.name] = target.value
        else:
            array = btf[btf.resolve(target.value)]
            if array.kind != TypeKind.ARRAY:
                raise BtfError(f"map attribute {member.name} is no number: define it with __uint")
            numbers[member.name] = btf.array(array)[1]
    return MapDefinition(numbers, inner, values, types.get("key", 0), types.get("value", 0))


def _inner(btf: Btf, array: Type) -> MapDefinition | None:
    """Return the inner map that `values` (an array of pointers) points to, None if it points to programs."""
    if array.kind != TypeKind.ARRAY:
        raise BtfError("map attribute values is no array: define it with __array")
    pointer = btf[btf.resolve(btf.array(array)[0])]
    if pointer.kind != TypeKind.PTR:
        raise BtfError("map attribute values holds no pointers")
    target = btf[btf.resolve(pointer.value)]
    return _definition(btf, target, nested=True) if target.kind == TypeKind.STRUCT else None


def _strings(data: bytes) -> int:
    _, _, _, header, _, _, offset, _ = _HEADER.unpack_from(data)
    return int(header + offset)


def strings_range(data: bytes) -> tuple[int, int]:
    """Return where the string section begins and ends in a .BTF section."""
    start = _strings(data)
    return start, start + int(_HEADER.unpack_from(data)[7])


def _string(data: bytes, base: int, offset: int) -> str:
    end = data.find(b"\0", base + offset)
    if end < 0:
        raise BtfError(f"string {offset} does not end")
    return data[base + offset : end].decode(errors="replace")


def _read(data: bytes) -> Btf:
    magic, version, _, header, start, length, _, _ = _HEADER.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise BtfError(f"magic {magic:#x}, version {version}: not the BTF that we know")
    position, end, strings = header + start, header + start + length, _strings(data)
    if strings_range(data)[1] > len(data) or end > len(data):
        raise BtfError("truncated")
    index: dict[TypeKind, dict[str, int]] = {kind: {} for kind in TypeKind}
    kinds = {int(kind): (kind, index[kind], *_EXTRA.get(kind, (0, 0))) for kind in TypeKind if kind != TypeKind.VOID}
    types = [Type("", TypeKind.VOID, 0, False, 0, 0)]
    while position < end:
        offset, info, value = _TYPE.unpack_from(data, position)
        position += _TYPE.size
        try:
            kind, named, once, each = kinds[info >> 24 & 0x1F]
        except KeyError:
            raise BtfError(f"unknown kind {info >> 24 & 0x1F}") from None
        vlen, name = info & 0xFFFF, _string(data, strings, offset) if offset else ""
        named.setdefault(name, len(types))
        types.append(Type(name, kind, vlen, info >> 31 == 1, value, position))
        position += once + each * vlen
    return Btf(data, tuple(types), index)


def for_kernel(btf: Btf, data: bytes, sizes: Mapping[str, int], offsets: Mapping[str, int]) -> bytes:
    """Return the section as the kernel takes it (libbpf: btf_fixup_datasec, bpf_object__sanitize_btf).

    The compiler leaves the size of a DATASEC and the offsets of its variables to the linker: `sizes` has the bytes of
    each section, `offsets` where each variable lies. What is declared only has no place in the kernel's BTF: variables
    become an int, functions a typedef, their section an anonymous struct.
    """
    out = bytearray(data)
    for item in btf.types[1:]:
        head = item.extra - _TYPE.size
        if item.kind == TypeKind.FUNC and item.vlen == _EXTERN:
            struct.pack_into("<I", out, head + 4, TypeKind.TYPEDEF << 24)
        elif item.kind == TypeKind.VAR and struct.unpack_from("<I", data, item.extra)[0] == _EXTERN:
            struct.pack_into("<III", out, head + 4, TypeKind.INT << 24, 1, 8)
        elif item.kind == TypeKind.DATASEC:
            _fix_section(btf, out, item, sizes, offsets)
    return bytes(out)


def _fix_section(btf: Btf, out: bytearray, item: Type, sizes: Mapping[str, int], offsets: Mapping[str, int]) -> None:
    head = item.extra - _TYPE.size
    variables = list(btf.variables(item))
    if item.name not in sizes:
        struct.pack_into("<III", out, head, 0, TypeKind.STRUCT << 24 | item.vlen, item.vlen)
        for index, (ident, _, _) in enumerate(variables):
            kept = ident if btf[ident].kind == TypeKind.VAR else 0
            struct.pack_into("<III", out, item.extra + 12 * index, 0, kept, 8 * index)
        return
    struct.pack_into("<I", out, head + 8, sizes[item.name])
    placed = sorted((offsets.get(btf[ident].name, offset), ident, size) for ident, offset, size in variables)
    for index, (offset, ident, size) in enumerate(placed):
        struct.pack_into("<III", out, item.extra + 12 * index, ident, offset, size)

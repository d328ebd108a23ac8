"""The layout of a map's keys and values, from the BTF of an object that declares the map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from datapath.errors import ObjectError
from datapath.object import elffile
from datapath.object.btf import Btf, BtfError, TypeKind, map_definition, parse
from datapath.object.reader import IN_MEMORY

Fields = Mapping[str, tuple[int, int]]
"""Offset and size in bytes of the fields of a struct, by name."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a map's key and value; empty for what is no struct, or of which only the size is known."""

    key: Fields
    value: Fields

    def shared(self, other: Layout) -> tuple[list[str], list[str]]:
        """Return the names of the fields that the keys and the values of both have."""
        return [n for n in self.key if n in other.key], [n for n in self.value if n in other.value]

    def read(
        self, content: Mapping[bytes, bytes], keys: Iterable[str], values: Iterable[str]
    ) -> dict[tuple[bytes, ...], dict[str, bytes]]:
        """Return a map's content by field; numbers of another size but with the same value are the same."""
        return {
            tuple(_field(key, *self.key[name]) for name in keys): {
                name: _field(value, *self.value[name]) for name in values
            }
            for key, value in content.items()
        }


def layout_of(name: str, objects: Iterable[bytes]) -> Layout | None:
    """Return the layout of a map by its name as the first object file has it; None if none says."""
    for data in objects:
        try:
            elf = elffile.read(IN_MEMORY, data)
            section = elf.section(".BTF")
            if section is None:
                continue
            types = parse(elf.content(section))
            definition = map_definition(types, name)
        except (BtfError, ObjectError):
            continue
        layout = Layout(_fields(types, definition.key_type), _fields(types, definition.value_type))
        return layout if layout.key and layout.value else None
    return None


def _fields(types: Btf, ident: int) -> Fields:
    item = types[types.resolve(ident)] if ident else None
    return types.struct_layout(item.name) if item is not None and item.kind == TypeKind.STRUCT and item.name else {}


def _field(data: bytes, offset: int, size: int) -> bytes:
    return data[offset : offset + size].rstrip(b"\0")

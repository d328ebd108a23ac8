"""C structs by the names of their fields: where each lies, as BTF tells, and what the lab knows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

from datapath.errors import ReloadlabError
from datapath.object.btf import Btf, TypeKind

Values = Mapping[str, int | bytes]
"""Values of fields. Bytes shorter than their field are followed by zeros."""


KNOWN_RELEASES = "1.14 to 1.17.0-rc.1, of 1.18-dev of January 2025 and of May 2025, and of 1.19-dev of October 2025"
"""Of 1.18 and 1.19 no release was recorded: what came after these snapshots may have other fields."""


class UnknownLayout(ReloadlabError):
    """A map whose keys or values are not what the lab knows; `differences` names every field, `map` the map."""

    def __init__(self, name: str, struct: str, differences: tuple[str, ...]) -> None:
        super().__init__(
            f"map {name}: {struct}: {', '.join(differences)}; the lab knows the layouts of Cilium {KNOWN_RELEASES}: "
            "load programs of one of these"
        )
        self.map = name
        self.differences = differences


@dataclass(frozen=True, slots=True)
class Record:
    """A struct: its name, its size in bytes, and offset and size in bits of each field by name."""

    struct: str
    size: int
    fields: Mapping[str, tuple[int, int]]

    @classmethod
    def of_type(cls, types: Btf, ident: int) -> Self:
        """Return the struct of that type id; what is no struct has no fields."""
        item = types[types.resolve(ident)]
        fields = types.fields(ident) if item.kind == TypeKind.STRUCT else {}
        return cls(item.name or item.kind.name.lower(), types.size(ident), fields)

    def pack(self, values: Values) -> bytes:
        """Return the struct with these values, all other fields being zero; ValueError if one does not fit."""
        packed = 0
        for name, value in values.items():
            offset, bits = self.fields[name]
            number = value if isinstance(value, int) else int.from_bytes(value, "little")
            if not 0 <= number < 1 << bits:
                raise ValueError(f"{self.struct}: {name} has {bits} bits, {value!r} does not fit")
            packed |= number << offset
        return packed.to_bytes(self.size, "little")


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one packed struct."""

    record: Record
    data: bytes

    def __contains__(self, name: str) -> bool:
        return name in self.record.fields

    def number(self, name: str) -> int:
        """Return a field as the number that the little-endian machine reads; 0 if the struct has no such field."""
        if name not in self.record.fields:
            return 0
        offset, bits = self.record.fields[name]
        return int.from_bytes(self.data, "little") >> offset & (1 << bits) - 1

    def raw(self, name: str) -> bytes:
        """Return the bytes of a field."""
        offset, bits = self.record.fields[name]
        return self.data[offset // 8 : (offset + bits) // 8]


@dataclass(frozen=True, slots=True)
class Known:
    """What the lab knows of a struct: all fields that any release gives it, by what becomes of them.

    `needed` and `optional` map our name of a field to its names in C: `needed` ones must be there, under one of them.
    `idle` are padding, and what stays zero or is not read. `fixed` are those that lower rooms read at this offset in
    bytes. All fields of one of the groups in `either` must be there. What is no struct is the field `scalar`. A field
    that none of these names is an UnknownLayout.
    """

    needed: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]
    idle: frozenset[str]
    fixed: Mapping[str, int]
    either: tuple[frozenset[str], ...] = ()
    scalar: str = ""

    @classmethod
    def of(
        cls,
        needed: str,
        *,
        optional: str = "",
        idle: str = "",
        fixed: Mapping[str, int] | None = None,
        either: Sequence[str] = (),
        scalar: str = "",
    ) -> Self:
        """Return it from lists of words; `ip=ip6/ip` is our `ip`, which is called ip6 or ip in C."""
        groups = tuple(frozenset(words.split()) for words in either)
        return cls(_names(needed), _names(optional), frozenset(idle.split()), fixed or {}, groups, scalar)

    def bind(self, name: str, record: Record) -> Record:
        """Return the record of map `name` with our names for its fields, without the idle ones; UnknownLayout."""
        if self.scalar and not record.fields:
            return replace(record, fields={self.scalar: (0, 8 * record.size)})
        wanted = {**self.needed, **self.optional}
        fields = {
            own: record.fields[found]
            for own, names in wanted.items()
            if (found := next((each for each in names if each in record.fields), None)) is not None
        }
        differences = tuple(self._differences(record, fields))
        if differences:
            raise UnknownLayout(name, record.struct, differences)
        return replace(record, fields=fields)

    def _differences(self, record: Record, fields: Values | Mapping[str, tuple[int, int]]) -> Iterator[str]:
        yield from (f"it has no field {'/'.join(names)}" for own, names in self.needed.items() if own not in fields)
        if self.either and not any(group <= fields.keys() for group in self.either):
            yield f"it has neither {' nor '.join(' and '.join(sorted(group)) for group in self.either)}"
        known = {name for names in (*self.needed.values(), *self.optional.values()) for name in names} | self.idle
        yield from (f"its field {name} is unknown" for name in record.fields if name not in known)
        for own, offset in self.fixed.items():
            if own in fields and record.fields[self.needed[own][0]][0] != 8 * offset:
                yield f"its field {own} is not at byte {offset}"


def _names(words: str) -> dict[str, tuple[str, ...]]:
    pairs = [word.partition("=") for word in words.split()]
    return {own: tuple(names.split("/")) if names else (own,) for own, _, names in pairs}


class Described(Protocol):
    """A key or value of a map, by the fields of any known layout."""

    KNOWN: ClassVar[Known]

    def values(self) -> Values:
        """Return the value of each field, by our names."""

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        """Take it from the fields of any known layout."""


class Packed(Described, Protocol):
    """A key or value of a map that our own sources have as well."""

    SIZE: ClassVar[int]

    def pack(self) -> bytes:
        """Return it in the layout of our own sources, of SIZE bytes."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Take it from the layout of our own sources; words that were appended do not matter."""

"""The outer shape of an object file: sections, symbols, relocations, and where their names lie.

pyelftools reads the headers; the tables with thousands of entries are unpacked here, which is ten times faster.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from datapath.errors import ObjectError

EM_BPF = 247
ET_REL = 1
SHT_NOBITS = 8
SHF_EXECINSTR = 4
SHN_UNDEF = 0
STT_OBJECT, STT_FUNC, STT_SECTION = 1, 2, 3
STB_LOCAL = 0
R_BPF_64_64 = 1
R_BPF_64_32 = 10

Place = tuple[int, int]
"""A section's index and an offset in it, in bytes."""

_ELF_HEADER = 64
_SECTION_HEADER = 64
_SYMBOL = struct.Struct("<IBBHQQ")
_REL = struct.Struct("<QQ")
_REL_PREFIX = ".rel"
_LARGEST_BSS = 1 << 24


@dataclass(frozen=True, slots=True)
class Section:
    """A section; `offset` and `size` in bytes of the file, `name_at` the place of its name in the file."""

    index: int
    name: str
    type: str
    flags: int
    offset: int
    size: int
    link: int
    info: int
    name_at: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol; `section` is an index (0 undefined), `value` its offset in that section."""

    name: str
    type: int
    bind: int
    section: int
    value: int
    size: int
    name_at: int


@dataclass(frozen=True, slots=True)
class Reloc:
    """A relocation at a byte offset of the section that it belongs to."""

    offset: int
    type: int
    symbol: Symbol


class ElfFile:
    """One object file in memory. `path` is only for messages."""

    def __init__(self, path: str, data: bytes, sections: Sequence[Section], symbols: Sequence[Symbol]) -> None:
        self.path = path
        self.data = data
        self.sections = sections
        self.symbols = symbols
        self._relocations = {s.info: s for s in sections if s.type == "SHT_REL"}

    def section(self, name: str) -> Section | None:
        """Return the first section of that name."""
        return next((s for s in self.sections if s.name == name), None)

    def content(self, section: Section) -> bytes:
        """Return the bytes of a section; zeros for one that takes no room in the file."""
        if section.type == "SHT_NOBITS":
            if section.size > _LARGEST_BSS:
                raise ObjectError(self.path, f"section {section.name} claims {section.size} bytes")
            return bytes(section.size)
        return self.data[section.offset : section.offset + section.size]

    def relocations(self, section: Section) -> Iterator[Reloc]:
        """Yield the relocations that apply to a section."""
        table = self._relocations.get(section.index)
        if table is None:
            return
        for offset, info in _REL.iter_unpack(self._whole(table, _REL.size)):
            index = info >> 32
            if index >= len(self.symbols):
                raise ObjectError(self.path, f"section {table.name} refers to symbol {index} that does not exist")
            yield Reloc(offset, info & 0xFFFFFFFF, self.symbols[index])

    def _whole(self, table: Section, entry: int) -> bytes:
        content = self.content(table)
        if len(content) % entry:
            raise ObjectError(self.path, f"section {table.name} has a broken size of {table.size} bytes")
        return content

    def shared_names(self) -> Mapping[int, frozenset[str]]:
        """Return which names end at the same byte: the linker keeps one string when another is its tail."""
        ends: dict[int, set[str]] = {}
        names = [(s.name, s.name_at) for s in self.sections] + [(s.name, s.name_at) for s in self.symbols]
        for name, place in names:
            if name:
                ends.setdefault(place + len(name.encode()), set()).add(name)
        return {end: frozenset(names) for end, names in ends.items()}

    def name_positions(self, name: str, symbols: Sequence[Symbol]) -> tuple[int, ...]:
        """Return where the file spells `name`, as a section, as its relocations' section, or as one of `symbols`."""
        places = {s.name_at for s in self.sections if s.name == name}
        places |= {s.name_at + len(_REL_PREFIX) for s in self.sections if s.name == _REL_PREFIX + name}
        places |= {s.name_at for s in symbols if s.name == name}
        return tuple(sorted(places))


def read(path: str, data: bytes) -> ElfFile:
    """Read a little-endian 64-bit BPF object; ObjectError says what else it is, or where it breaks off."""
    _check_header(path, data)
    try:
        elf = ELFFile(io.BytesIO(data))
        names = elf.get_section(elf.header["e_shstrndx"])
        base = names["sh_offset"]
        sections = [
            Section(
                index=index,
                name=s.name,
                type=str(s["sh_type"]),
                flags=s["sh_flags"],
                offset=s["sh_offset"],
                size=s["sh_size"],
                link=s["sh_link"],
                info=s["sh_info"],
                name_at=base + s["sh_name"],
            )
            for index, s in enumerate(elf.iter_sections())
        ]
    except (ELFError, UnicodeDecodeError, KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
        # pyelftools lets several exceptions escape when headers are nonsense.
        raise ObjectError(path, f"damaged ELF file: {error or type(error).__name__}") from error
    for section in sections:
        if section.type != "SHT_NOBITS" and section.offset + section.size > len(data):
            raise ObjectError(
                path, f"truncated: section {section.name} ends at byte {section.offset + section.size} of {len(data)}"
            )
    return ElfFile(path, data, sections, _symbols(path, data, sections))


def _check_header(path: str, data: bytes) -> None:
    if data[:4] != b"\x7fELF":
        raise ObjectError(path, "not an ELF file")
    if len(data) < _ELF_HEADER:
        raise ObjectError(path, f"truncated: {len(data)} bytes are less than an ELF header")
    if data[5] == 2:
        raise ObjectError(path, "big-endian object: compile with --target=bpf or --target=bpfel")
    machine = int.from_bytes(data[18:20], "little")
    if data[4] != 2 or data[5] != 1 or machine != EM_BPF:
        raise ObjectError(path, f"object of another architecture (ELF machine {machine}, BPF is {EM_BPF})")
    if int.from_bytes(data[16:18], "little") != ET_REL:
        raise ObjectError(path, "not a relocatable object: give the compiler's output, not a linked file")
    table, count = int.from_bytes(data[40:48], "little"), int.from_bytes(data[60:62], "little")
    if not table or not count:
        raise ObjectError(path, "the object has no section table")
    if table + count * _SECTION_HEADER > len(data):
        raise ObjectError(
            path, f"truncated: the section table ends at byte {table + count * _SECTION_HEADER} of {len(data)}"
        )


def _symbols(path: str, data: bytes, sections: Sequence[Section]) -> list[Symbol]:
    table = next((s for s in sections if s.type == "SHT_SYMTAB"), None)
    if table is None:
        return []
    if table.link >= len(sections) or table.size % _SYMBOL.size:
        raise ObjectError(path, "the symbol table is damaged")
    base = sections[table.link].offset
    symbols = []
    for name, info, _, section, value, size in _SYMBOL.iter_unpack(data[table.offset : table.offset + table.size]):
        end = data.find(b"\0", base + name)
        text = data[base + name : end].decode(errors="replace") if name else ""
        symbols.append(Symbol(text, info & 0xF, info >> 4, section, value, size, base + name))
    return symbols

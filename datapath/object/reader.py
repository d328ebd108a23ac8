"""From an object file to a CollectionSpec, and from a template's file to an endpoint's file.

The format is the one Cilium's loader takes at the reference commit: legacy definitions in `maps` (iproute2's
bpf_elf_map), BTF definitions in `.maps`, one section per program, `<map id>/<slot>` for tail calls, constants as
variables of `.data` whose loads become immediates (pkg/bpf/collection.go: iproute2Compat, inlineGlobalData;
pkg/elf: the substitution); and what libbpf makes of other objects. Nothing here asks a kernel.

Whatever is an object file can be read. What in it cannot be loaded is listed with its problem.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.errors import ObjectError
from datapath.object import btf, btfext
from datapath.object.code import Code
from datapath.object.elffile import STT_OBJECT, ElfFile, Section, read
from datapath.object.mapdefs import data_map, read_maps
from datapath.object.slots import place_policies, place_tagged
from datapath.object.spec import CollectionSpec, Constant, DataSection, Substitution, place_programs

IN_MEMORY = "<object>"

_CONSTANT_SIZES = (1, 2, 4, 8, 16)
_DATA = (".data.", ".rodata.", ".bss.")


@dataclass(frozen=True, slots=True)
class ObjectImage:
    """An object file, parsed once: what it asks for, and where its bytes must change to become another endpoint's.

    `places` maps every name that can be replaced to the offsets in the file where it is spelled; `data_at` is where
    each section of variables begins in the file.
    """

    data: bytes
    spec: CollectionSpec
    places: Mapping[str, tuple[int, ...]]
    data_at: Mapping[str, int]

    def patched(self, sub: Substitution, *, strict: bool = True) -> bytes:
        """Return the file with words and names replaced in place; read again, it gives `spec.substitute(sub)`.

        Fails like CollectionSpec.substitute, before anything is written.
        """
        return b"".join(self.pieces(sub, strict=strict))

    def pieces(self, sub: Substitution, *, strict: bool = True) -> list[memoryview | bytes]:
        """Return what `patched` returns in pieces that can be written one after the other, without a copy of it all."""
        changes = [(self.data_at[c.section] + c.offset, word) for c, word in self.spec.words(sub, strict=strict)]
        self.spec.check_names(sub.names)
        for old, new in sub.names.items():
            if not self.places.get(old):
                raise ObjectError(self.spec.path, f"{old} shares its spelling with another name: it cannot be renamed")
            changes += [(place, new.encode()) for place in self.places[old]]
        changes.sort()
        whole = memoryview(self.data)
        parts: list[memoryview | bytes] = []
        position = 0
        for place, word in changes:
            parts += (whole[position:place], word)
            position = place + len(word)
        parts.append(whole[position:])
        return parts

    def reread(self, path: str, data: bytes) -> CollectionSpec | None:
        """Return the spec of a file that `patched` made of this one; None for any other file.

        It is what read_object returns for that file, but for `btf`, which has the names of this one. It takes a
        hundredth of the time. `path` is for messages.
        """
        if len(data) != len(self.data):
            return None
        sub = Substitution(
            {c.name: _word(data, self.data_at[c.section] + c.offset, c.size) for c in self.spec.constants.values()},
            {old: _name(data, places[0], old) for old, places in self.places.items() if places},
        )
        try:
            is_patched = self.patched(sub) == data
        except ObjectError:  # it spells a name that no file of ours has there
            return None
        return replace(self.spec.substitute(sub), path=path) if is_patched else None


def _word(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _name(data: bytes, at: int, old: str) -> str:
    return data[at : at + len(old.encode())].decode(errors="replace")


def read_object(source: Path | bytes) -> ObjectImage:
    """Read an object file, or the bytes of one; every defect is an ObjectError that says where it is."""
    path = IN_MEMORY if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ObjectError(path, error.strerror or str(error)) from error
    elf = read(path, data)
    try:
        return _image(elf)
    except (btf.BtfError, struct.error, OverflowError) as error:
        raise ObjectError(path, f"damaged object: {error}") from error


def _image(elf: ElfFile) -> ObjectImage:
    problems: list[str] = []
    btf_section = elf.section(".BTF")
    types = _types(elf, btf_section, problems)
    ext = _ext(elf, types, problems)
    maps, places, found = read_maps(elf, types)
    sections, data = _data(elf)
    programs, addressed = Code(elf, types, ext, places, sections).programs()
    maps |= {name: data_map(sections[name], types) for name in sections if name in addressed}
    filled, unplaced = place_programs(list(maps.values()), programs)
    tagged, untagged = place_tagged(filled, programs, types)
    licence = elf.section("license")
    kernel_btf = _kernel_btf(elf, types, btf_section, problems)
    spec = CollectionSpec(
        path=elf.path,
        maps=place_policies(tagged, programs),
        programs=programs,
        constants=_constants(elf, sections),
        data=data,
        license=elf.content(licence).split(b"\0", 1)[0].decode(errors="replace") if licence is not None else "",
        sections=sections,
        btf=kernel_btf,
        problems=(*problems, *found, *unplaced, *untagged),
    )
    in_file = {s.name: s.offset for s in elf.sections if s.name in sections}
    return ObjectImage(elf.data, spec, _places(elf, spec, btf_section if types is not None else None), in_file)


# --- types ---


def _types(elf: ElfFile, section: Section | None, problems: list[str]) -> btf.Btf | None:
    if section is None:
        return None
    try:
        return btf.parse(elf.content(section))
    except btf.BtfError as error:
        problems.append(f"section .BTF cannot be read: {error}")
        return None


def _ext(elf: ElfFile, types: btf.Btf | None, problems: list[str]) -> btfext.BtfExt:
    section = elf.section(".BTF.ext")
    if section is None or types is None:
        return btfext.BtfExt()
    try:
        return btfext.parse(elf.content(section), types)
    except btf.BtfError as error:
        problems.append(f"section .BTF.ext cannot be read: {error}")
        return btfext.BtfExt()


def _kernel_btf(elf: ElfFile, types: btf.Btf | None, section: Section | None, problems: list[str]) -> bytes:
    if types is None or section is None:
        return b""
    sizes = {s.name: s.size for s in elf.sections if 0 < s.size < 1 << 32}
    offsets = {s.name: s.value for s in elf.symbols if s.type == STT_OBJECT}
    try:
        return btf.for_kernel(types, elf.content(section), sizes, offsets)
    except (btf.BtfError, struct.error) as error:
        problems.append(f"section .BTF cannot be given to the kernel: {error}")
        return b""


# --- variables and names ---


def _data(elf: ElfFile) -> tuple[dict[str, DataSection], bytes]:
    """Return the sections of variables, and their bytes one behind the other, .data first."""
    found = [s for s in elf.sections if s.size and f"{s.name}.".startswith(_DATA)]
    found.sort(key=lambda section: section.name != ".data")
    sections: dict[str, DataSection] = {}
    data = bytearray()
    for section in found:
        is_zero = section.type == "SHT_NOBITS"
        if section.name in sections:
            continue
        sections[section.name] = DataSection(section.name, section.size, 0 if is_zero else len(data), is_zero)
        if not is_zero:
            data += elf.content(section)
            if section is not found[-1]:
                data += bytes(-len(data) % 8)
    return sections, bytes(data)


def _constants(elf: ElfFile, sections: Mapping[str, DataSection]) -> dict[str, Constant]:
    filled = {name for name, section in sections.items() if not section.is_zero}
    names = {s.index: s.name for s in elf.sections if s.name in filled}
    return {
        s.name: Constant(s.name, s.value, s.size, names[s.section])
        for s in elf.symbols
        if s.section in names and s.type == STT_OBJECT and s.size in _CONSTANT_SIZES
    }


def _places(elf: ElfFile, spec: CollectionSpec, btf_section: Section | None) -> dict[str, tuple[int, ...]]:
    """Return where the file spells each name that can be replaced; empty where a name is another one's tail."""
    shared = elf.shared_names()
    strings = b""
    base = 0
    if btf_section is not None:
        start, end = btf.strings_range(elf.content(btf_section))
        base = btf_section.offset + start
        strings = elf.data[base : base + end - start]
    maps = spec.maps.keys() - spec.sections.keys()
    symbols = [s for s in elf.symbols if s.name in maps]
    places = {}
    for name in {*maps, *(p.section for p in spec.programs.values())}:
        found = elf.name_positions(name, symbols)
        if any(shared.get(place + len(name.encode()), set()) - {name, f".rel{name}"} for place in found):
            found = ()
        else:
            at = strings.find(b"\0" + name.encode() + b"\0")
            found += () if at < 0 else (base + at + 1,)
        places[name] = found
    return places

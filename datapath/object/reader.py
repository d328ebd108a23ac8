"""From an object file to a CollectionSpec, and from a template's file to an endpoint's file.

The format is the one Cilium's loader takes at the reference commit: legacy definitions in `maps` (iproute2's
bpf_elf_map), BTF definitions in `.maps`, one section per program, `<map id>/<slot>` for tail calls, constants as
variables of `.data` whose loads become immediates (pkg/bpf/collection.go: iproute2Compat, inlineGlobalData;
pkg/elf: the substitution). Nothing here asks a kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.bpftypes import ProgType
from datapath.errors import ObjectError
from datapath.object import btf
from datapath.object.elffile import (
    R_BPF_64_32,
    R_BPF_64_64,
    SHF_EXECINSTR,
    SHN_UNDEF,
    STB_LOCAL,
    STT_FUNC,
    STT_OBJECT,
    STT_SECTION,
    ElfFile,
    Reloc,
    Section,
    Symbol,
    read,
)
from datapath.object.spec import (
    INSN_SIZE,
    CollectionSpec,
    Constant,
    MapSpec,
    ProgramSpec,
    Substitution,
    fill_slots,
    parse_slot,
)

IN_MEMORY = "<object>"

_LD_IMM64 = 0x18
_CALL = 0x85
_PSEUDO_MAP_FD = 1
_PSEUDO_CALL = 1
_LEGACY = struct.Struct("<9I")
_CONSTANT_SIZES = (1, 2, 4, 8)
_XDP_PREFIXES = ("cil_xdp", "xdp")
_MAP_NUMBERS = {
    "type": "type",
    "key_size": "key_size",
    "value_size": "value_size",
    "max_entries": "max_entries",
    "map_flags": "flags",
    "numa_node": "numa_node",
    "map_extra": "map_extra",
}
# .BTF.ext: magic, version, flags, header length, then offset and length of func_info, line_info, core_relo.
_EXT_HEADER = struct.Struct("<HBBI6I")


@dataclass(frozen=True, slots=True)
class ObjectImage:
    """An object file, parsed once: what it asks for, and where its bytes must change to become another endpoint's.

    `places` maps every name that can be replaced to the offsets in the file where it is spelled; `data_at` is where
    `.data` begins in the file.
    """

    data: bytes
    spec: CollectionSpec
    places: Mapping[str, tuple[int, ...]]
    data_at: int

    def patched(self, sub: Substitution, *, strict: bool = True) -> bytes:
        """Return the file with words and names replaced in place; read again, it gives `spec.substitute(sub)`.

        Fails like CollectionSpec.substitute, before anything is written.
        """
        return b"".join(self.pieces(sub, strict=strict))

    def pieces(self, sub: Substitution, *, strict: bool = True) -> list[memoryview | bytes]:
        """Return what `patched` returns in pieces that can be written one after the other, without a copy of it all."""
        changes = [(self.data_at + c.offset, word) for c, word in self.spec.words(sub, strict=strict)]
        self.spec.check_names(sub.names)
        for old, new in sub.names.items():
            if not self.places[old]:
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
    btf_section = elf.section(".BTF")
    types = btf.parse(elf.content(btf_section)) if btf_section is not None else None
    maps = _legacy_maps(elf) | _btf_maps(elf, types)
    symbols = {(s.section, s.value): s.name for s in elf.symbols if s.name in maps}
    relocated = _core_relocations(elf, types)
    programs: dict[str, ProgramSpec] = {}
    for section in elf.sections:
        if section.flags & SHF_EXECINSTR and section.size and section.name != ".text":
            for program in _programs(elf, section, symbols, relocated):
                programs[program.name] = program
    if not programs:
        raise ObjectError(elf.path, "the object has no programs")
    data = elf.section(".data")
    licence = elf.section("license")
    spec = CollectionSpec(
        path=elf.path,
        maps=fill_slots(elf.path, list(maps.values()), programs),
        programs=programs,
        constants=_constants(elf, data),
        data=elf.content(data) if data is not None else b"",
        license=elf.content(licence).split(b"\0", 1)[0].decode(errors="replace") if licence is not None else "",
    )
    return ObjectImage(elf.data, spec, _places(elf, spec, btf_section), data.offset if data is not None else 0)


# --- maps ---


def _legacy_maps(elf: ElfFile) -> dict[str, MapSpec]:
    """Read section `maps`: nine words per map (iproute2: struct bpf_elf_map)."""
    section = elf.section("maps")
    if section is None or not section.size:
        return {}
    content = elf.content(section)
    symbols = [s for s in elf.symbols if s.section == section.index and s.name and s.type != STT_SECTION]
    if len(content) % _LEGACY.size or len(symbols) * _LEGACY.size != len(content):
        raise ObjectError(
            elf.path,
            f"section maps has {len(content)} bytes for {len(symbols)} maps: a legacy definition has {_LEGACY.size}",
        )
    maps: dict[str, MapSpec] = {}
    inner: dict[str, int] = {}
    for symbol in symbols:
        kind, key, value, entries, flags, ident, pinning, inner_id, inner_idx = _LEGACY.unpack_from(
            content, symbol.value
        )
        if inner_idx:
            raise ObjectError(elf.path, f"map {symbol.name}: inner_idx is not supported")
        if inner_id:
            inner[symbol.name] = inner_id
        maps[symbol.name] = MapSpec(symbol.name, kind, key, value, entries, flags, pinned=pinning > 0, id=ident)
    for name, ident in inner.items():
        found = next((m for m in maps.values() if m.id == ident), None)
        if found is None:
            raise ObjectError(elf.path, f"map {name}: no map has the id {ident} of its inner map")
        maps[name] = replace(maps[name], inner=found)
    return maps


def _btf_maps(elf: ElfFile, types: btf.Btf | None) -> dict[str, MapSpec]:
    """Read section `.maps`: one BTF variable per map; `values` is filled by relocations (libbpf)."""
    section = elf.section(".maps")
    if section is None or not section.size:
        return {}
    if types is None:
        raise ObjectError(elf.path, "section .maps without .BTF: compile with -g")
    maps: dict[str, MapSpec] = {}
    values: dict[str, int] = {}
    symbols = [s for s in elf.symbols if s.section == section.index and s.name and s.type == STT_OBJECT]
    for symbol in symbols:
        definition = btf.map_definition(types, symbol.name)
        maps[symbol.name] = _map_spec(elf.path, symbol.name, definition)
        if definition.values_offset is not None:
            values[symbol.name] = symbol.value + definition.values_offset
    contents: dict[str, dict[int, str]] = {}
    for reloc in elf.relocations(section):
        owner = next((s for s in symbols if s.value <= reloc.offset < s.value + s.size and s.name in values), None)
        if owner is None or not reloc.symbol.name:
            raise ObjectError(
                elf.path, f"section .maps has a relocation at byte {reloc.offset} that no map's values own"
            )
        contents.setdefault(owner.name, {})[(reloc.offset - values[owner.name]) // 8] = reloc.symbol.name
    return {name: replace(m, contents=contents[name]) if name in contents else m for name, m in maps.items()}


def _map_spec(path: str, name: str, definition: btf.MapDefinition) -> MapSpec:
    numbers = dict(definition.numbers)
    pinning = numbers.pop("pinning", 0)
    unknown = numbers.keys() - _MAP_NUMBERS
    if unknown:
        raise ObjectError(path, f"map {name}: unknown attribute {', '.join(sorted(unknown))}")
    if pinning not in (0, 1):
        raise ObjectError(path, f"map {name}: pinning {pinning} is not supported (1 is LIBBPF_PIN_BY_NAME)")
    inner = None if definition.inner is None else _map_spec(path, "", definition.inner)
    defaults = {"type": 0, "key_size": 0, "value_size": 0, "max_entries": 0}
    fields = defaults | {_MAP_NUMBERS[key]: value for key, value in numbers.items()}
    if inner is not None or definition.values_offset is not None:
        # A map of maps or programs holds descriptors, whatever the definition leaves out.
        fields["key_size"] = fields["key_size"] or 4
        fields["value_size"] = fields["value_size"] or 4
    return MapSpec(
        name,
        fields["type"],
        fields["key_size"],
        fields["value_size"],
        fields["max_entries"],
        fields.get("flags", 0),
        pinned=pinning == 1,
        inner=inner,
        numa_node=fields.get("numa_node", 0),
        map_extra=fields.get("map_extra", 0),
    )


# --- programs ---


def _programs(
    elf: ElfFile, section: Section, maps: Mapping[tuple[int, int], str], core: Mapping[str, tuple[int, ...]]
) -> list[ProgramSpec]:
    """Read the programs of one section: its global functions."""
    functions = [s for s in elf.symbols if s.section == section.index and s.type == STT_FUNC and s.bind != STB_LOCAL]
    if not functions:
        raise ObjectError(elf.path, f"section {section.name} has code but no global function")
    code = elf.content(section)
    relocations = list(elf.relocations(section))
    programs = []
    for function in functions:
        where = f"program {function.name} (section {section.name})"
        start, end = function.value, function.value + function.size
        if not start < end <= len(code) or function.size % INSN_SIZE or start % INSN_SIZE:
            raise ObjectError(elf.path, f"{where}: its symbol covers bytes {start} to {end} of {len(code)}")
        if any(start <= offset < end for offset in core.get(section.name, ())):
            raise ObjectError(elf.path, f"{where} has CO-RE relocations, which are not supported")
        mine = [r for r in relocations if start <= r.offset < end]
        programs.append(_program(elf, where, function, section, code[start:end], mine, maps))
    return programs


def _program(
    elf: ElfFile,
    where: str,
    function: Symbol,
    section: Section,
    code: bytes,
    relocations: list[Reloc],
    maps: Mapping[tuple[int, int], str],
) -> ProgramSpec:
    if any(op == _CALL and regs >> 4 == _PSEUDO_CALL for op, regs in zip(code[::8], code[1::8], strict=True)):
        raise ObjectError(elf.path, f"{where} calls another BPF function, which is not supported: inline it")
    insns = bytearray(code)
    map_refs: list[tuple[int, str]] = []
    constant_refs: list[tuple[int, int]] = []
    for reloc in relocations:
        at = reloc.offset - function.value
        if reloc.type == R_BPF_64_32:
            raise ObjectError(elf.path, f"{where} calls {reloc.symbol.name}, which is not supported: inline it")
        if reloc.type != R_BPF_64_64 or at % INSN_SIZE or at + 16 > len(insns) or insns[at] != _LD_IMM64:
            raise ObjectError(elf.path, f"{where}: unsupported relocation of type {reloc.type} at byte {at}")
        offset = reloc.symbol.value + int.from_bytes(insns[at + 4 : at + 8], "little")
        insns[at + 4 : at + 8] = insns[at + 12 : at + 16] = bytes(4)
        name = maps.get((reloc.symbol.section, offset))
        if name is not None:
            insns[at + 1] = insns[at + 1] & 0xF | _PSEUDO_MAP_FD << 4
            map_refs.append((at // INSN_SIZE, name))
        elif _is_data(elf, where, reloc.symbol, offset):
            constant_refs.append((at // INSN_SIZE, offset))
    return ProgramSpec(
        name=function.name,
        section=section.name,
        type=ProgType.XDP if function.name.startswith(_XDP_PREFIXES) else ProgType.SCHED_CLS,
        insns=bytes(insns),
        map_refs=tuple(map_refs),
        constant_refs=tuple(constant_refs),
        slot=parse_slot(section.name),
    )


def _is_data(elf: ElfFile, where: str, symbol: Symbol, offset: int) -> bool:
    """Return whether the load is of a word of .data; False for .bss, whose words are 0 (inlineGlobalData)."""
    if symbol.section == SHN_UNDEF or symbol.section >= len(elf.sections):
        raise ObjectError(elf.path, f"{where} refers to {symbol.name or 'a symbol'}, which the object does not define")
    section = elf.sections[symbol.section]
    if section.name == ".bss":
        return False
    what = symbol.name or f"byte {offset}"
    if section.flags & SHF_EXECINSTR:
        raise ObjectError(elf.path, f"{where} takes the address of function {what}, which is not supported")
    if section.name != ".data":
        raise ObjectError(elf.path, f"{where} refers to {what} in {section.name}: only .data and .bss can be inlined")
    if offset % 4 or offset >= section.size:
        raise ObjectError(
            elf.path, f"{where} refers to {what} at byte {offset} of .data: not the start of a word in it"
        )
    return True


def _core_relocations(elf: ElfFile, types: btf.Btf | None) -> dict[str, tuple[int, ...]]:
    """Return the instruction offsets, by section, that .BTF.ext wants relocated against the running kernel."""
    section = elf.section(".BTF.ext")
    if section is None or types is None:
        return {}
    content = elf.content(section)
    *_, header, _, _, _, _, offset, length = _EXT_HEADER.unpack_from(content.ljust(_EXT_HEADER.size, b"\0"))
    if header < _EXT_HEADER.size or not length:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    position, end = header + offset, header + offset + length
    (record,) = struct.unpack_from("<I", content, position)
    position += 4
    while position < end:
        name, count = struct.unpack_from("<2I", content, position)
        position += 8
        offsets = tuple(struct.unpack_from("<I", content, position + i * record)[0] for i in range(count))
        found[types.string(name)] = found.get(types.string(name), ()) + offsets
        position += count * record
    return found


# --- constants and names ---


def _constants(elf: ElfFile, data: Section | None) -> dict[str, Constant]:
    if data is None:
        return {}
    return {
        s.name: Constant(s.name, s.value, s.size)
        for s in elf.symbols
        if s.section == data.index and s.type == STT_OBJECT and s.size in _CONSTANT_SIZES
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
    symbols = [s for s in elf.symbols if s.name in spec.maps]
    places = {}
    for name in {*spec.maps, *(p.section for p in spec.programs.values())}:
        found = elf.name_positions(name, symbols)
        if any(shared.get(place + len(name.encode()), set()) - {name, f".rel{name}"} for place in found):
            found = ()
        else:
            at = strings.find(b"\0" + name.encode() + b"\0")
            found += () if at < 0 else (base + at + 1,)
        places[name] = found
    return places

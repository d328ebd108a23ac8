"""Map definitions: legacy ones in section `maps`, BTF ones in `.maps`, and maps that stand for sections of variables.

What a definition says and we do not know becomes the map's `problem`: the other maps can be read all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from datapath.base.bpftypes import OF_MAPS_TYPES, MapType
from datapath.object import btf
from datapath.object.elffile import STT_OBJECT, STT_SECTION, ElfFile, Place, Section, Symbol
from datapath.object.spec import DataSection, MapSpec

LEGACY, BTF_DEFINED = "maps", ".maps"
STRUCT_OPS = (".struct_ops", ".struct_ops.link")

BPF_F_RDONLY_PROG = 1 << 7

_LARGEST_VALUE = (1 << 31) - 1
_PIN_BY_NAME, _PIN_REPLACE = 1, 16
_ELF_MAP_SIZES = (28, 36)
"""iproute2's struct bpf_elf_map: without and with inner_id and inner_idx. Any other has libbpf's five words."""
_NUMBERS = frozenset(("type", "key_size", "value_size", "max_entries", "map_flags", "numa_node", "map_extra"))
_OF_DESCRIPTORS = OF_MAPS_TYPES | {MapType.PROG_ARRAY, MapType.PERF_EVENT_ARRAY, MapType.CGROUP_ARRAY}
_UNSUPPORTED = {
    MapType.ARENA: "arenas are not supported",
    MapType.STRUCT_OPS: "struct_ops maps are not supported",
}

_Legacy = tuple[MapSpec, int]
"""A legacy map and the id of its inner map (0: none)."""


def read_maps(elf: ElfFile, types: btf.Btf | None) -> tuple[dict[str, MapSpec], dict[Place, str], list[str]]:
    """Return the maps by name, where each is defined, and what is wrong with the sections, one line each."""
    problems: list[str] = []
    found: dict[Place, MapSpec] = {}
    legacy = elf.section(LEGACY)
    if legacy is not None and legacy.size:
        found.update(_with_inner_maps(dict(_legacy_maps(elf, legacy, problems))))
    defined = elf.section(BTF_DEFINED)
    if defined is not None and defined.size:
        found.update(_btf_maps(elf, defined, types))
    found.update(_struct_ops(elf))
    places = {place: item.name for place, item in found.items()}
    maps = {item.name: item for item in found.values()}
    if defined is not None:
        _fill_values(elf, defined, types, maps, places, problems)
    return maps, places, problems


def data_map(section: DataSection, types: btf.Btf | None) -> MapSpec:
    """Return the map that holds a section of variables (libbpf: bpf_object__init_internal_map)."""
    value_type = 0
    if types is not None:
        ident = types.index_of(section.name, btf.TypeKind.DATASEC)
        if ident is not None and types.has_special_fields(ident):
            value_type = ident
    flags = BPF_F_RDONLY_PROG if section.read_only else 0
    problem = "" if section.size <= _LARGEST_VALUE else f"{section.size} bytes are more than a map holds in one value"
    return MapSpec(
        section.name,
        MapType.ARRAY,
        4,
        section.size,
        1,
        flags,
        value_type=value_type,
        needs_types=value_type > 0,
        problem=problem,
    )


# --- section maps ---


def _symbols(elf: ElfFile, section: Section) -> list[Symbol]:
    found = [s for s in elf.symbols if s.section == section.index and s.name and s.type != STT_SECTION]
    return sorted(found, key=lambda symbol: symbol.value)


def _legacy_maps(elf: ElfFile, section: Section, problems: list[str]) -> Iterator[tuple[Place, _Legacy]]:
    symbols = [s for s in _symbols(elf, section) if s.type == STT_OBJECT]
    content = elf.content(section)
    covered = 0
    for symbol in symbols:
        end = symbol.value + symbol.size
        if end > len(content):
            problems.append(f"map {symbol.name}: its symbol covers bytes {symbol.value} to {end} of {len(content)}")
            continue
        covered += symbol.size
        yield (section.index, symbol.value), _legacy_map(symbol.name, content[symbol.value : end])
    if covered != len(content):
        problems.append(f"section {LEGACY} has {len(content)} bytes, of which {covered} belong to a map with a symbol")


def _legacy_map(name: str, definition: bytes) -> _Legacy:
    words = [word for (word,) in struct.iter_unpack("<I", definition[: len(definition) // 4 * 4])]
    if len(words) < 4:
        return MapSpec(name, 0, 0, 0, 0, problem=f"its definition has {len(definition)} bytes only"), 0
    rest = words[5:]
    ident, pinning, inner_id, inner_index = 0, 0, 0, 0
    problem = ""
    if len(definition) in _ELF_MAP_SIZES:
        ident, pinning, inner_id, inner_index = (*rest, 0, 0)[:4]
    elif any(rest) or len(definition) % 4:
        problem = f"its definition has {len(definition)} bytes, of which only the first 20 are known"
    if inner_index:
        problem = "inner_idx is not supported"
    kind, key, value, entries, flags = (*words, 0)[:5]
    spec = MapSpec(name, kind, key, value, entries, flags, pinned=pinning > 0, id=ident, problem=problem)
    return _finished(spec), inner_id


def _with_inner_maps(maps: Mapping[Place, _Legacy]) -> Iterator[tuple[Place, MapSpec]]:
    by_id = {spec.id: spec for spec, _ in reversed(list(maps.values())) if spec.id}
    for place, (spec, inner_id) in maps.items():
        if not inner_id:
            yield place, spec
        elif inner_id in by_id:
            yield place, replace(spec, inner=by_id[inner_id])
        else:
            yield place, replace(spec, problem=f"no map has the id {inner_id} of its inner map")


# --- section .maps ---


def _btf_maps(elf: ElfFile, section: Section, types: btf.Btf | None) -> Iterator[tuple[Place, MapSpec]]:
    for symbol in _symbols(elf, section):
        if symbol.type != STT_OBJECT:
            continue
        if types is None:
            spec = MapSpec(symbol.name, 0, 0, 0, 0, problem="defined in .maps without .BTF: compile with -g")
        else:
            try:
                spec = _map_spec(symbol.name, btf.map_definition(types, symbol.name), types)
            except (btf.BtfError, struct.error) as error:
                spec = MapSpec(symbol.name, 0, 0, 0, 0, problem=str(error))
        yield (section.index, symbol.value), spec


def _map_spec(name: str, definition: btf.MapDefinition, types: btf.Btf) -> MapSpec:
    numbers = {key: value & 0xFFFFFFFFFFFFFFFF for key, value in definition.numbers.items()}
    pinning = numbers.pop("pinning", 0)
    problem = ""
    unknown = numbers.keys() - _NUMBERS
    too_large = [key for key, value in numbers.items() if value >> 32 and key != "map_extra"]
    if too_large:
        problem = f"{too_large[0]} is {numbers[too_large[0]]}, more than 32 bits hold"
    elif unknown:
        problem = f"unknown attribute {', '.join(sorted(unknown))}"
    elif pinning not in (0, _PIN_BY_NAME, _PIN_REPLACE):
        problem = f"pinning {pinning} is not supported (1 pins by name, {_PIN_REPLACE} replaces the pin)"
    special = bool(definition.value_type) and types.has_special_fields(definition.value_type)
    spec = MapSpec(
        name,
        type=numbers.get("type", 0),
        key_size=numbers.get("key_size", 0),
        value_size=numbers.get("value_size", 0),
        max_entries=numbers.get("max_entries", 0),
        flags=numbers.get("map_flags", 0),
        numa_node=numbers.get("numa_node", 0),
        map_extra=numbers.get("map_extra", 0),
        pinned=pinning in (_PIN_BY_NAME, _PIN_REPLACE),
        replace_pin=pinning == _PIN_REPLACE,
        inner=None if definition.inner is None else _map_spec("", definition.inner, types),
        key_type=definition.key_type,
        value_type=definition.value_type,
        needs_types=special,
        problem=problem,
    )
    return _finished(spec, holds_descriptors=definition.values_offset is not None)


def _finished(spec: MapSpec, *, holds_descriptors: bool = False) -> MapSpec:
    """Return the definition with what it may leave out, and with its problem if we cannot create such a map."""
    if holds_descriptors or spec.type in _OF_DESCRIPTORS:
        spec = replace(spec, key_size=spec.key_size or 4, value_size=spec.value_size or 4)
    problem = spec.problem or next((text for kind, text in _UNSUPPORTED.items() if kind == spec.type), "")
    if not problem and not spec.type:
        problem = "its definition has no type"
    if not problem and spec.inner is not None and spec.inner.problem:
        problem = f"inner map: {spec.inner.problem}"
    return replace(spec, problem=problem) if problem else spec


def _fill_values(
    elf: ElfFile,
    section: Section,
    types: btf.Btf | None,
    maps: dict[str, MapSpec],
    places: Mapping[Place, str],
    problems: list[str],
) -> None:
    """Put what the relocations of .maps name into the contents of the maps that hold it (libbpf: collect_map_relos)."""
    relocations = list(elf.relocations(section))
    owners = []
    for symbol in _symbols(elf, section) if relocations else ():
        if symbol.name not in maps:
            continue
        try:
            definition = btf.map_definition(types, symbol.name) if types is not None else None
        except (btf.BtfError, struct.error):
            continue
        if definition is not None and definition.values_offset is not None:
            owners.append((symbol, symbol.value + definition.values_offset))
    content = elf.content(section)
    contents: dict[str, dict[int, str]] = {}
    for reloc in relocations:
        at = reloc.offset
        owner = next(((s, start) for s, start in owners if start <= at < s.value + s.size), None)
        target = reloc.symbol.name or _named(elf, places, reloc.symbol.section, content[at : at + 8])
        if owner is None or not target:
            problems.append(f"section {BTF_DEFINED} has a relocation at byte {at} that no map's values own")
            continue
        contents.setdefault(owner[0].name, {})[(at - owner[1]) // 8] = target
    for name, slots in contents.items():
        maps[name] = replace(maps[name], contents=slots)


def _named(elf: ElfFile, places: Mapping[Place, str], section: int, addend: bytes) -> str:
    """Return the name of the map or function that a relocation against a section means."""
    offset = int.from_bytes(addend, "little")
    if (section, offset) in places:
        return places[section, offset]
    found: Iterable[Symbol] = (s for s in elf.symbols if (s.section, s.value) == (section, offset) and s.name)
    return next((s.name for s in found if s.type != STT_SECTION), "")


def _struct_ops(elf: ElfFile) -> Iterator[tuple[Place, MapSpec]]:
    for name in STRUCT_OPS:
        section = elf.section(name)
        for symbol in _symbols(elf, section) if section is not None else ():
            if section is not None and symbol.type == STT_OBJECT:
                spec = MapSpec(symbol.name, MapType.STRUCT_OPS, 4, symbol.size, 1)
                yield (section.index, symbol.value), _finished(spec)

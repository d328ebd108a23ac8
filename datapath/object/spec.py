"""What an object file asks for, as pure values: maps, programs, constants. Nothing here depends on a kernel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from datapath.errors import ObjectError

INSN_SIZE = 8

_NUMBERED = re.compile(r"(\d+)/(0[xX][0-9a-fA-F]+|\d+)")


def parse_slot(section: str) -> tuple[int, int] | None:
    """Return (map id, index) of a numbered section such as 2/7 or 1/0xffff, None for any other name."""
    match = _NUMBERED.fullmatch(section)
    if match is None:
        return None
    index = match[2]
    return int(match[1]), int(index, 16 if index[:2] in ("0x", "0X") else 10)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map. Sizes in bytes; `pinned` means pinned by its name; `id` is the legacy id (0 if none).

    `contents` says what is put where at load time: programs (by function) for a program array, maps (by name) for a map
    of maps. `inner` is the shape of the maps inside a map of maps.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    pinned: bool = False
    id: int = 0
    inner: MapSpec | None = None
    contents: Mapping[int, str] = field(default_factory=dict)
    numa_node: int = 0
    map_extra: int = 0


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program. `name` is its function's symbol, `type` an enum bpf_prog_type.

    `insns` have the loads of maps marked (BPF_PSEUDO_MAP_FD) and every relocated immediate zeroed: the loader writes a
    descriptor at each of `map_refs`, the word of `.data` at each of `constant_refs` (instruction index, byte offset).
    """

    name: str
    section: str
    type: int
    insns: bytes
    map_refs: tuple[tuple[int, str], ...] = ()
    constant_refs: tuple[tuple[int, int], ...] = ()
    slot: tuple[int, int] | None = None

    @property
    def instructions(self) -> int:
        """Number of instructions; a 16-byte load counts as two, as the kernel counts."""
        return len(self.insns) // INSN_SIZE

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps that the program uses, in order of first use."""
        return tuple(dict.fromkeys(name for _, name in self.map_refs))


@dataclass(frozen=True, slots=True)
class Constant:
    """A variable of .data that stands for a constant: where it lies and its size, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Substitution:
    """What makes a template's object an endpoint's object (pkg/elf): words of .data, names of maps and sections.

    A word is what the little-endian machine reads at that place. A name is replaced by another of the same length.
    """

    constants: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """Everything one object asks for. `data` is its .data section; equality does not look at the path."""

    path: str = field(compare=False)
    maps: Mapping[str, MapSpec]
    programs: Mapping[str, ProgramSpec]
    constants: Mapping[str, Constant]
    data: bytes
    license: str

    def substitute(self, sub: Substitution, *, strict: bool = True) -> CollectionSpec:
        """Return this spec with constants and names replaced.

        Unknown names, unequal lengths and values that do not fit are ObjectErrors; without `strict`, constants that the
        object lacks are ignored.
        """
        data = bytearray(self.data)
        for constant, word in self.words(sub, strict=strict):
            data[constant.offset : constant.offset + constant.size] = word
        self.check_names(sub.names)
        if not sub.names:
            return replace(self, data=bytes(data))
        programs = {name: _rename_program(program, sub.names) for name, program in self.programs.items()}
        maps = [_rename_map(m, sub.names) for m in self.maps.values()]
        return replace(
            self, data=bytes(data), programs=programs, maps=_refill(self.path, maps, self.programs, programs)
        )

    def words(self, sub: Substitution, *, strict: bool = True) -> list[tuple[Constant, bytes]]:
        """Return the bytes that a substitution writes into .data, checked."""
        found = []
        for name, value in sub.constants.items():
            constant = self.constants.get(name)
            if constant is None:
                if strict:
                    raise ObjectError(self.path, f"no constant {name} to substitute")
                continue
            if not 0 <= value < 1 << 8 * constant.size:
                raise ObjectError(
                    self.path, f"value {value:#x} of constant {name} does not fit its {constant.size} bytes"
                )
            found.append((constant, value.to_bytes(constant.size, "little")))
        return found

    def check_names(self, names: Mapping[str, str]) -> None:
        """Refuse replacements that the object file cannot hold: an unknown name, another length, a name taken."""
        if not names:
            return
        sections = {program.section for program in self.programs.values()}
        taken = sections | self.maps.keys()
        for old, new in names.items():
            if old not in taken:
                raise ObjectError(self.path, f"no map or section {old} to rename to {new}")
            if len(old.encode()) != len(new.encode()):
                raise ObjectError(self.path, f"{old} cannot become {new}: the length must stay the same")
        renamed = [names.get(name, name) for name in taken]
        twice = (
            sorted({name for name in renamed if renamed.count(name) > 1}) if len(set(renamed)) < len(renamed) else []
        )
        if twice:
            raise ObjectError(self.path, f"two maps or sections would be called {twice[0]}")


def fill_slots(path: str, maps: Sequence[MapSpec], programs: Mapping[str, ProgramSpec]) -> dict[str, MapSpec]:
    """Put the programs of numbered sections into the contents of the maps that their ids name.

    An unknown map id, or a slot used twice, is an ObjectError that names program and section.
    """
    by_id: dict[int, MapSpec] = {}
    for item in maps:
        if item.id and by_id.setdefault(item.id, item) is not item:
            raise ObjectError(path, f"maps {by_id[item.id].name} and {item.name} have the same id {item.id}")
    contents: dict[str, dict[int, str]] = {}
    for program in programs.values():
        if program.slot is None:
            continue
        ident, index = program.slot
        if ident not in by_id:
            raise ObjectError(path, f"program {program.name} (section {program.section}): no map has the id {ident}")
        target = by_id[ident]
        if target.name not in contents:
            contents[target.name] = dict(target.contents)
        slots = contents[target.name]
        if slots.setdefault(index, program.name) != program.name:
            raise ObjectError(
                path,
                f"program {program.name} (section {program.section}): slot {index} of {target.name} "
                f"already holds {slots[index]}",
            )
    return {m.name: replace(m, contents=contents[m.name]) if m.name in contents else m for m in maps}


def _rename_program(program: ProgramSpec, names: Mapping[str, str]) -> ProgramSpec:
    section = names.get(program.section, program.section)
    refs = program.map_refs
    if any([name in names for _, name in refs]):
        refs = tuple([(index, names.get(name, name)) for index, name in refs])
    if refs is program.map_refs and section == program.section:
        return program
    # Not dataclasses.replace, which takes several times as long: most programs of every reload come by here.
    slot = program.slot if section == program.section else parse_slot(section)
    return ProgramSpec(program.name, section, program.type, program.insns, refs, program.constant_refs, slot)


def _rename_map(item: MapSpec, names: Mapping[str, str]) -> MapSpec:
    name = names.get(item.name, item.name)
    if item.inner is None:
        return item if name == item.name else replace(item, name=name)
    # Only a map of maps has map names in its slots; those of program arrays are functions.
    inner = replace(item.inner, name=names.get(item.inner.name, item.inner.name))
    return replace(item, name=name, inner=inner, contents={i: names.get(n, n) for i, n in item.contents.items()})


def _refill(
    path: str, maps: Sequence[MapSpec], before: Mapping[str, ProgramSpec], after: Mapping[str, ProgramSpec]
) -> dict[str, MapSpec]:
    """Return the maps with their contents moved to the slots that renamed sections stand for."""
    moved = {old.slot: old.name for old in before.values() if old.slot is not None and old.slot != after[old.name].slot}
    if not moved:
        return {m.name: m for m in maps}
    ids = {slot[0] for slot in moved}
    emptied = [
        replace(m, contents={i: n for i, n in m.contents.items() if moved.get((m.id, i)) != n}) if m.id in ids else m
        for m in maps
    ]
    return fill_slots(path, emptied, after)

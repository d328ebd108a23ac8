"""What an object file asks for, as pure values: maps, programs, constants. Nothing here depends on a kernel.

A spec may hold items that can be listed but not loaded: their `problem` says why. `CollectionSpec.check` is for those
who need the whole object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from datapath.errors import ObjectError
from datapath.object.slots import place_policies

INSN_SIZE = 8

CONFIG_SECTION = ".rodata.config"
"""Where Cilium's programs have their constants since 1.15."""

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
    of maps. `inner` is the shape of the maps inside a map of maps. `replace_pin` marks a map that is new at every load
    and takes the pin's place at the commit (CILIUM_PIN_REPLACE). `key_type` and `value_type` are BTF type ids, 0 where
    only a size is given; `needs_types` says that the kernel wants to know them (a spin lock or a timer in the value).
    `problem` is empty, or says why the map cannot be created.
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
    replace_pin: bool = False
    key_type: int = field(default=0, compare=False)
    value_type: int = field(default=0, compare=False)
    needs_types: bool = field(default=False, compare=False)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of the source that an instruction was compiled from; objects of templates have no text of it."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        place = f"{self.file.rpartition('/')[2]}:{self.line}"
        return f"{place} `{self.text}`" if self.text else place


@dataclass(frozen=True, slots=True)
class DebugInfo:
    """func_info and line_info records of a program, as BPF_PROG_LOAD takes them (8 and 16 bytes a record)."""

    func_info: bytes = b""
    line_info: bytes = b""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program with the functions that it calls behind it. `name` is its function's symbol.

    `type` is an enum bpf_prog_type, `flags` and `attach_type` go with it. `insns` have the loads of maps marked
    (BPF_PSEUDO_MAP_FD, or BPF_PSEUDO_MAP_VALUE for variables in a data map) and their descriptors zeroed: the loader
    writes one at each of `map_refs`, and the word of `CollectionSpec.data` at each of `constant_refs` (instruction
    index, byte offset). `subprograms` names the called functions. `problem` is empty, or says why the program cannot be
    loaded.
    """

    name: str
    section: str
    type: int
    insns: bytes
    map_refs: tuple[tuple[int, str], ...] = ()
    constant_refs: tuple[tuple[int, int], ...] = ()
    slot: tuple[int, int] | None = None
    flags: int = 0
    attach_type: int = 0
    subprograms: tuple[str, ...] = ()
    debug: DebugInfo = field(default=DebugInfo(), compare=False)
    problem: str = ""

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
    """A variable that holds a constant: where it lies in its section, and its size, in bytes."""

    name: str
    offset: int
    size: int
    section: str = ".data"


@dataclass(frozen=True, slots=True)
class DataSection:
    """A section of variables. `base` is where its bytes begin in `CollectionSpec.data`; .bss has none there."""

    name: str
    size: int
    base: int = 0
    is_zero: bool = False

    @property
    def read_only(self) -> bool:
        return self.name.startswith(".rodata")


@dataclass(frozen=True, slots=True)
class Substitution:
    """What makes a template's object an endpoint's object (pkg/elf): constants, names of maps and sections.

    A word is what the little-endian machine reads at that place. A name is replaced by another of the same length.
    """

    constants: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """Everything one object asks for; equality does not look at the path.

    `data` holds .data, then the other sections of variables, as `sections` says. A section that instructions refer to
    by address is also one of the maps, under its own name. `btf` is what the kernel is given. `problems` are defects
    that belong to no single map or program.
    """

    path: str = field(compare=False)
    maps: Mapping[str, MapSpec]
    programs: Mapping[str, ProgramSpec]
    constants: Mapping[str, Constant]
    data: bytes
    license: str
    sections: Mapping[str, DataSection] = field(default_factory=dict)
    btf: bytes = field(default=b"", compare=False)
    problems: tuple[str, ...] = ()

    def defects(self) -> list[str]:
        """Return everything that keeps the object from being loaded as a whole, one line each."""
        maps = [f"map {m.name}: {m.problem}" for m in self.maps.values() if m.problem]
        programs = [f"program {p.name} (section {p.section}) {p.problem}" for p in self.programs.values() if p.problem]
        return [*self.problems, *maps, *programs]

    def check(self) -> None:
        """Refuse an object that cannot be loaded as a whole: ObjectError with the first of its defects."""
        defects = self.defects()
        if defects:
            more = f" (and {len(defects) - 1} more: see reloadlab inspect)" if len(defects) > 1 else ""
            raise ObjectError(self.path, defects[0] + more)

    def content(self, section: str) -> bytes:
        """Return the bytes of a section of variables."""
        found = self.sections[section]
        return bytes(found.size) if found.is_zero else self.data[found.base : found.base + found.size]

    def value(self, constant: Constant) -> int:
        """Return a constant's value as the little-endian machine reads it."""
        start = self._position(constant)
        return int.from_bytes(self.data[start : start + constant.size], "little")

    def _position(self, constant: Constant) -> int:
        section = self.sections.get(constant.section)
        return constant.offset + (section.base if section is not None else 0)

    def substitute(self, sub: Substitution, *, strict: bool = True) -> CollectionSpec:
        """Return this spec with constants and names replaced.

        Unknown names, unequal lengths and values that do not fit are ObjectErrors; without `strict`, constants that the
        object lacks are ignored.
        """
        data = bytearray(self.data)
        for constant, word in self.words(sub, strict=strict):
            start = self._position(constant)
            data[start : start + constant.size] = word
        self.check_names(sub.names)
        if not sub.names:
            return replace(self, data=bytes(data))
        programs = {name: _rename_program(program, sub.names) for name, program in self.programs.items()}
        maps = [_rename_map(m, sub.names) for m in self.maps.values()]
        return replace(
            self,
            data=bytes(data),
            programs=programs,
            maps=place_policies(_refill(self.path, maps, self.programs, programs), programs),
        )

    def words(self, sub: Substitution, *, strict: bool = True) -> list[tuple[Constant, bytes]]:
        """Return the bytes that a substitution writes into constants, checked."""
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
    filled, problems = place_programs(maps, programs)
    if problems:
        raise ObjectError(path, problems[0])
    return filled


def place_programs(
    maps: Sequence[MapSpec], programs: Mapping[str, ProgramSpec]
) -> tuple[dict[str, MapSpec], list[str]]:
    """Do what `fill_slots` does, and return what could not be placed, one line each."""
    problems: list[str] = []
    by_id: dict[int, MapSpec] = {}
    for item in maps:
        if item.id and by_id.setdefault(item.id, item) is not item:
            problems.append(f"maps {by_id[item.id].name} and {item.name} have the same id {item.id}")
    contents: dict[str, dict[int, str]] = {}
    for program in programs.values():
        if program.slot is None:
            continue
        ident, index = program.slot
        where = f"program {program.name} (section {program.section})"
        if ident not in by_id:
            problems.append(f"{where}: no map has the id {ident}")
            continue
        target = by_id[ident]
        if target.name not in contents:
            contents[target.name] = dict(target.contents)
        slots = contents[target.name]
        if slots.setdefault(index, program.name) != program.name:
            problems.append(f"{where}: slot {index} of {target.name} already holds {slots[index]}")
    return {m.name: replace(m, contents=contents[m.name]) if m.name in contents else m for m in maps}, problems


def _rename_program(program: ProgramSpec, names: Mapping[str, str]) -> ProgramSpec:
    section = names.get(program.section, program.section)
    refs = program.map_refs
    if any([name in names for _, name in refs]):
        refs = tuple([(index, names.get(name, name)) for index, name in refs])
    if refs is program.map_refs and section == program.section:
        return program
    # Not dataclasses.replace, which takes several times as long: most programs of every reload come by here.
    slot = program.slot if section == program.section else parse_slot(section)
    return ProgramSpec(
        *(program.name, section, program.type, program.insns, refs, program.constant_refs, slot),
        *(program.flags, program.attach_type, program.subprograms, program.debug, program.problem),
    )


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

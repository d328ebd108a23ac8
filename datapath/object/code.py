"""Functions of an object and what they refer to; programs put together from the functions that they call.

A program is a global function of a section other than .text, as libbpf has it, or a static one that nobody calls and
whose section or tag is that of a slot. Functions of .text, other static ones, and those of sections without a meaning
that others call are subprograms: each program gets a copy of those it reaches, behind its own instructions
(tools/lib/bpf: bpf_object__relocate_calls).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from datapath.base.bpftypes import LOADED_TYPES
from datapath.object.btf import Btf
from datapath.object.btfext import BtfExt
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
    Place,
    Reloc,
    Section,
    Symbol,
)
from datapath.object.kinds import ProgramKind, default_kind, known_kind
from datapath.object.loads import CALL, LD_IMM64, PSEUDO_CALL, Region, Use, use_of_load
from datapath.object.slots import tagged_slots
from datapath.object.spec import CONFIG_SECTION, INSN_SIZE, DataSection, DebugInfo, ProgramSpec, parse_slot

_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE, _PSEUDO_FUNC = 1, 2, 4
_CALL_OF_FUNCTION = bytes((CALL, PSEUDO_CALL << 4))
_WORD_SIZES = (1, 2, 4, 8)
_TEXT = ".text"


class Unsupported(ValueError):
    """A function that cannot be loaded; the text says why, as the end of a sentence about it."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function's symbol, or what stands for it where the symbols were stripped."""

    name: str
    section: Section
    start: int
    end: int
    is_local: bool

    @property
    def place(self) -> Place:
        return self.section.index, self.start


@dataclass(slots=True)
class _Load:
    """A load of a variable: where, of what, and what it seems to mean."""

    index: int
    section: str
    offset: int
    symbol: Symbol


@dataclass(slots=True)
class _Body:
    """A function's code with its references taken out; `problem` says why it cannot be loaded."""

    function: Function
    insns: bytearray
    maps: list[tuple[int, str]] = field(default_factory=list)
    constants: list[tuple[int, int]] = field(default_factory=list)
    loads: list[_Load] = field(default_factory=list)
    calls: list[tuple[int, Place]] = field(default_factory=list)
    pointers: list[tuple[int, Place]] = field(default_factory=list)
    problem: str = ""

    @property
    def targets(self) -> Iterator[Place]:
        yield from (place for _, place in (*self.calls, *self.pointers))


@dataclass(frozen=True)
class Code:
    """What an object's functions are to be read with."""

    elf: ElfFile
    types: Btf | None
    ext: BtfExt
    maps: Mapping[Place, str]
    data: Mapping[str, DataSection]

    @cached_property
    def _config(self) -> Mapping[int, Symbol]:
        """The constants of Cilium since 1.15 by their offset: they are static, and loads name their section alone."""
        section = self.elf.section(CONFIG_SECTION)
        index = SHN_UNDEF if section is None else section.index
        return {s.value: s for s in self.elf.symbols if s.section == index and s.type == STT_OBJECT}

    def programs(self) -> tuple[dict[str, ProgramSpec], frozenset[str]]:
        """Return the programs by name, and the sections of variables that they refer to by address."""
        functions = list(_functions(self.elf, self.types, self.ext))
        bodies = {function.place: self._body(function) for function in functions}
        addressed = self._settle_loads(bodies)
        called = {place for body in bodies.values() for place in body.targets}
        tagged = frozenset() if self.types is None else frozenset(tagged_slots(self.types))
        entries = [f for f in functions if _is_entry(f, called, tagged)]
        fallback = default_kind((f.section.name, f.name) for f in entries)
        programs: dict[str, ProgramSpec] = {}
        for function in entries:
            kind = known_kind(function.section.name)
            numbered = parse_slot(function.section.name) is not None
            if kind is not None or numbered or function.place not in called:
                programs[function.name] = self._program(bodies, function, kind or fallback)
        return programs, addressed

    # --- one function ---

    def _body(self, function: Function) -> _Body:
        content = self.elf.content(function.section)
        body = _Body(function, bytearray(content[function.start : function.end]))
        try:
            self._read(body)
        except Unsupported as error:
            body.problem = str(error)
        return body

    def _read(self, body: _Body) -> None:
        function, insns = body.function, body.insns
        size = function.end - function.start
        if size <= 0 or len(insns) != size or size % INSN_SIZE or function.start % INSN_SIZE:
            reach = f"bytes {function.start} to {function.end} of {function.section.size}"
            raise Unsupported(f"is damaged: its symbol covers {reach}")
        if self.ext.has_core(function.section.name, function.start, function.end):
            raise Unsupported("has CO-RE relocations, which are not supported")
        if not self.elf.symbols and any(_is_reference(insns, at) for at in range(0, len(insns), INSN_SIZE)):
            raise Unsupported("refers to maps, variables or functions that were stripped with the symbol table")
        relocated = set()
        for reloc in self.elf.relocations(function.section):
            if function.start <= reloc.offset < function.end:
                relocated.add(reloc.offset - function.start)
                self._relocate(body, reloc, reloc.offset - function.start)
        at = -1
        while (at := insns.find(_CALL_OF_FUNCTION, at + 1)) >= 0:
            if at % INSN_SIZE == 0 and at not in relocated:
                target = function.start + at + (_immediate(insns, at) + 1) * INSN_SIZE
                body.calls.append((at // INSN_SIZE, (function.section.index, target)))

    def _relocate(self, body: _Body, reloc: Reloc, at: int) -> None:
        insns, symbol = body.insns, reloc.symbol
        if reloc.type == R_BPF_64_32 and at % INSN_SIZE == 0 and insns[at] == CALL:
            self._require_defined(symbol, "calls")
            target = symbol.value + (_immediate(insns, at) + 1) * INSN_SIZE
            body.calls.append((at // INSN_SIZE, (symbol.section, target)))
            return
        if reloc.type != R_BPF_64_64 or at % INSN_SIZE or at + 16 > len(insns) or insns[at] != LD_IMM64:
            raise Unsupported(f"has an unsupported relocation of type {reloc.type} at byte {at}")
        offset = symbol.value + int.from_bytes(insns[at + 4 : at + 8], "little")
        insns[at + 4 : at + 8] = insns[at + 12 : at + 16] = bytes(4)
        name = self.maps.get((symbol.section, offset))
        if name is not None:
            _mark(insns, at, _PSEUDO_MAP_FD)
            body.maps.append((at // INSN_SIZE, name))
        else:
            self._refer(body, symbol, at, offset)

    def _refer(self, body: _Body, symbol: Symbol, at: int, offset: int) -> None:
        """Note a reference to something other than a map: a function, or a variable."""
        self._require_defined(symbol, "refers to")
        section = self.elf.sections[symbol.section]
        what = symbol.name or f"byte {offset}"
        if section.flags & SHF_EXECINSTR:
            body.pointers.append((at // INSN_SIZE, (section.index, offset)))
        elif section.name in self.data:
            if offset > section.size:
                raise Unsupported(f"refers to byte {offset} of {section.name}, which has {section.size}")
            variable = self._config.get(offset, symbol) if section.name == CONFIG_SECTION else symbol
            body.loads.append(_Load(at // INSN_SIZE, section.name, offset, variable))
        elif section.name in ("maps", ".maps"):
            raise Unsupported(f"refers to {what} in section {section.name}, where no map is defined")
        else:
            raise Unsupported(f"refers to {what} in section {section.name}, which is not supported")

    def _require_defined(self, symbol: Symbol, verb: str) -> None:
        if symbol.section != SHN_UNDEF and symbol.section < len(self.elf.sections):
            return
        name = symbol.name or "a symbol"
        where = self.types.external(symbol.name) if self.types is not None else None
        if where == ".ksyms":
            kind = "kernel function" if verb == "calls" else "kernel symbol"
            raise Unsupported(f"{verb} the {kind} {name} ({'kfunc' if verb == 'calls' else 'ksym'}), not supported")
        if where == ".kconfig":
            raise Unsupported(f"{verb} the kernel's configuration, {name}, which is not supported")
        raise Unsupported(f"{verb} {name}, which the object does not define")

    # --- variables ---

    def _settle_loads(self, bodies: Mapping[Place, _Body]) -> frozenset[str]:
        """Turn every load of a variable into an inlined word or an address; return the sections with an address."""
        regions = {place: Region(bytes(body.insns)) for place, body in bodies.items()}
        for place, body in bodies.items():
            regions[place].calls = {index: regions[target] for index, target in body.calls if target in regions}
        loads = [
            (body, load, use_of_load(regions[place], load.index))
            for place, body in bodies.items()
            if not body.problem
            for load in body.loads
        ]
        dereferenced = {load.section for _, load, use in loads if use is Use.ADDRESS}
        addressed = set()
        for body, load, use in loads:
            if _is_address(load, use, dereferenced):
                _mark(body.insns, load.index * INSN_SIZE, _PSEUDO_MAP_VALUE)
                _set_immediate(body.insns, (load.index + 1) * INSN_SIZE, load.offset)
                body.maps.append((load.index, load.section))
                addressed.add(load.section)
                continue
            section = self.data[load.section]
            what = load.symbol.name or f"byte {load.offset}"
            if load.offset % 4 or load.offset >= section.size:
                where = f"byte {load.offset} of {load.section}"
                body.problem = f"refers to {what} at {where}: not the start of a word in it"
            elif not section.is_zero:
                body.constants.append((load.index, section.base + load.offset))
                if load.symbol.size == 8:  # the upper word stands in the second half of the load
                    body.constants.append((load.index + 1, section.base + load.offset + 4))
        return frozenset(addressed)

    # --- programs ---

    def _program(self, bodies: Mapping[Place, _Body], main: Function, kind: ProgramKind) -> ProgramSpec:
        spec = ProgramSpec(
            name=main.name,
            section=main.section.name,
            type=kind.type,
            insns=bytes(bodies[main.place].insns),
            slot=parse_slot(main.section.name),
            flags=kind.flags,
            attach_type=kind.attach_type,
        )
        try:
            spec = _link(spec, _reachable(bodies, main.place), self.ext)
        except Unsupported as error:
            spec = replace(spec, problem=str(error))
        if kind.type not in LOADED_TYPES:
            also = f"; it {spec.problem}" if spec.problem else ""
            spec = replace(spec, problem=f"is of kind {kind.type.name.lower()}, which is not supported{also}")
        return spec


def _is_entry(function: Function, called: set[Place], tagged: Container[str]) -> bool:
    """Tell whether a function is a program, and not a part of others.

    A static one is if nobody calls it and its section or its tag is that of a slot: Cilium's tail calls are since 1.15.
    """
    if function.is_local:
        has_slot = function.name in tagged or parse_slot(function.section.name) is not None
        return has_slot and function.place not in called
    return function.section.name != _TEXT


def _link(spec: ProgramSpec, parts: Sequence[_Body], ext: BtfExt) -> ProgramSpec:
    """Put the functions of a program behind each other, with their references."""
    starts: dict[Place, int] = {}
    end = 0
    for body in parts:
        starts[body.function.place] = end
        end += len(body.insns) // INSN_SIZE
    insns = bytearray()
    map_refs: list[tuple[int, str]] = []
    constant_refs: list[tuple[int, int]] = []
    debug: list[DebugInfo] = []
    for body in parts:
        start = starts[body.function.place]
        part = bytearray(body.insns)
        for index, place in body.calls:
            _set_immediate(part, index * INSN_SIZE, starts[place] - (start + index + 1))
        for index, place in body.pointers:
            _mark(part, index * INSN_SIZE, _PSEUDO_FUNC)
            _set_immediate(part, index * INSN_SIZE, starts[place] - (start + index + 1))
        insns += part
        map_refs += [(start + index, name) for index, name in sorted(body.maps)]
        constant_refs += [(start + index, offset) for index, offset in body.constants]
        function = body.function
        debug.append(ext.of_function(function.section.name, function.start, function.end, start))
    # The kernel wants a record for every function or none at all.
    functions = b"".join(d.func_info for d in debug) if all(d.func_info for d in debug) else b""
    return replace(
        spec,
        insns=bytes(insns),
        map_refs=tuple(map_refs),
        constant_refs=tuple(constant_refs),
        subprograms=tuple(body.function.name for body in parts[1:]),
        debug=DebugInfo(functions, b"".join(d.line_info for d in debug) if functions else b""),
    )


def _reachable(bodies: Mapping[Place, _Body], main: Place) -> list[_Body]:
    """Return a function and all that it calls, directly or not, each once."""
    found = {main: bodies[main]}
    todo = [main]
    while todo:
        body = found[todo.pop()]
        if body.problem:
            through = "" if body.function.place == main else f"calls {body.function.name}, which "
            raise Unsupported(through + body.problem)
        for place in body.targets:
            if place not in bodies:
                raise Unsupported(f"calls byte {place[1]} of section {place[0]}, where no function begins")
            if place not in found:
                found[place] = bodies[place]
                todo.append(place)
    return list(found.values())


def _functions(elf: ElfFile, types: Btf | None, ext: BtfExt) -> Iterator[Function]:
    """Yield the functions of every section with code, in the order of the sections; stripped ones get a name."""
    by_section: dict[int, list[Symbol]] = {}
    for symbol in elf.symbols:
        if symbol.type == STT_FUNC:
            by_section.setdefault(symbol.section, []).append(symbol)
    for section in elf.sections:
        if not section.flags & SHF_EXECINSTR or not section.size:
            continue
        symbols = by_section.get(section.index, [])
        for symbol in symbols:
            yield Function(symbol.name, section, symbol.value, symbol.value + symbol.size, symbol.bind == STB_LOCAL)
        if not symbols:
            yield from _stripped(section, types, ext)


def _stripped(section: Section, types: Btf | None, ext: BtfExt) -> Iterator[Function]:
    """Yield the functions of a section without symbols: as .BTF.ext has them, else one by the section's name."""
    records = ext.functions.get(section.name, ()) if types is not None else ()
    starts = [(offset, types[ident].name) for offset, ident in records] if types is not None else []
    if not starts:
        starts = [(0, "".join(c if c.isalnum() else "_" for c in section.name))]
    ends = [offset for offset, _ in starts[1:]] + [section.size]
    for (start, name), end in zip(starts, ends, strict=True):
        yield Function(name, section, start, end, is_local=False)


def _is_address(load: _Load, use: Use, dereferenced: set[str]) -> bool:
    if use is not Use.UNKNOWN:
        return use is Use.ADDRESS
    is_constant = load.section in (".data", ".bss", CONFIG_SECTION) and load.symbol.size in _WORD_SIZES
    return not is_constant or load.section in dereferenced or load.symbol.type == STT_SECTION


def _is_reference(insns: bytearray, at: int) -> bool:
    return insns[at] == LD_IMM64 or (insns[at] == CALL and insns[at + 1] >> 4 == PSEUDO_CALL)


def _immediate(insns: bytes | bytearray, at: int) -> int:
    return int.from_bytes(insns[at + 4 : at + 8], "little", signed=True)


def _set_immediate(insns: bytearray, at: int, value: int) -> None:
    insns[at + 4 : at + 8] = (value & 0xFFFFFFFF).to_bytes(4, "little")


def _mark(insns: bytearray, at: int, pseudo: int) -> None:
    insns[at + 1] = insns[at + 1] & 0xF | pseudo << 4

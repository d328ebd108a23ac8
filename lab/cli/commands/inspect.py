"""`reloadlab inspect`: what an object file asks for, without asking any kernel."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapath.base.bpftypes import MapType, ProgType
from datapath.object.reachability import ways
from lab.cli.tables import add_row, make_table, print_table
from lab.cli.targets import print_json

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.table import Table

    from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "inspect",
        description="Read a BPF object file and print its programs, maps, constants and license, and what of it cannot "
        "be loaded, with the reason. Needs no privilege.",
    )
    parser.add_argument("object", type=Path, metavar="OBJECT", help="the object file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the object; what is no object at all is an ObjectError."""
    from datapath.object.reader import read_object

    spec = read_object(args.object).spec
    if args.json:
        print_json(document(spec))
        return 0
    print(f"{spec.path}: license {spec.license or 'none'}")
    for table in (_programs(spec), _maps(spec), *([_constants(spec)] if spec.constants else [])):
        print()
        print_table(table)
    for defect in spec.defects():
        print(f"not supported: {defect}")
    return 0


def document(spec: CollectionSpec) -> dict[str, Any]:
    """Return the object as JSON values: lists `programs`, `maps`, `constants`, `problems`; `path`, `license`."""
    starts = ways(spec)
    return {
        "path": spec.path,
        "license": spec.license,
        "programs": [_program_document(p) | {"reached_from": list(starts[p.name])} for p in spec.programs.values()],
        "maps": [_map_document(m) for m in spec.maps.values()],
        "constants": [asdict(c) | {"value": spec.value(c)} for c in spec.constants.values()],
        "problems": list(spec.problems),
    }


def _program_document(program: ProgramSpec) -> dict[str, Any]:
    return {
        "name": program.name,
        "section": program.section,
        "type": ProgType(program.type).name.lower(),
        "instructions": program.instructions,
        "map_id": program.slot[0] if program.slot else None,
        "slot": program.slot[1] if program.slot else None,
        "maps": list(program.maps),
        "subprograms": list(program.subprograms),
        "problem": program.problem or None,
    }


def _map_document(item: MapSpec) -> dict[str, Any]:
    values = asdict(item)
    # What means nothing outside the object, or is ours to know.
    del values["key_type"], values["value_type"], values["needs_types"]
    values["type"] = map_type_name(item.type)
    values["problem"] = item.problem or None
    values["inner"] = None if item.inner is None else _map_document(item.inner)
    values["contents"] = {str(slot): name for slot, name in sorted(item.contents.items())}
    return values


def map_type_name(number: int) -> str:
    """Return the kernel's name of a map type in lower case, or the number if we do not know it."""
    try:
        return MapType(number).name.lower()
    except ValueError:
        return str(number)


def _programs(spec: CollectionSpec) -> Table:
    total = sum(p.instructions for p in spec.programs.values())
    names = ("program", "section", "type", "slot", "instructions", "reached from", "maps")
    title = f"{len(spec.programs)} programs, {total:,} instructions"
    table = make_table(*names, figures=("slot", "instructions"), title=title)
    starts = ways(spec)
    by_id = {m.id: m.name for m in spec.maps.values() if m.id}
    for p in spec.programs.values():
        slot = f"{by_id.get(p.slot[0], p.slot[0])}[{p.slot[1]}]" if p.slot else ""
        kind = ProgType(p.type).name.lower()
        source = ", ".join(starts[p.name]) or "nothing"
        row = (p.name, p.section, kind, slot, f"{p.instructions:,}", source, ", ".join(p.maps))
        add_row(table, *row)
    return table


def _maps(spec: CollectionSpec) -> Table:
    figures = ("key", "value", "entries", "flags", "id")
    table = make_table(
        "map", "type", *figures, "pinned", "inner", "slots", figures=figures, title=f"{len(spec.maps)} maps"
    )
    for m in spec.maps.values():
        inner = f"{map_type_name(m.inner.type)} {m.inner.key_size}/{m.inner.value_size}" if m.inner else ""
        numbers = (m.key_size, m.value_size, f"{m.max_entries:,}", f"{m.flags:#x}", m.id or "")
        slots = _ranges(sorted(m.contents))
        pinned = "replaced" if m.replace_pin else "by name" if m.pinned else ""
        row = (m.name, map_type_name(m.type), *map(str, numbers), pinned, inner, slots)
        add_row(table, *row)
    return table


def _constants(spec: CollectionSpec) -> Table:
    figures = ("offset", "size", "value")
    table = make_table("constant", "section", *figures, figures=figures, title=f"{len(spec.constants)} constants")
    for c in sorted(spec.constants.values(), key=lambda c: (c.section, c.offset)):
        add_row(table, c.name, c.section, str(c.offset), str(c.size), f"{spec.value(c):#x}")
    return table


def _ranges(numbers: list[int]) -> str:
    """Return 1, 4-7, 10 for [1, 4, 5, 6, 7, 10]."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

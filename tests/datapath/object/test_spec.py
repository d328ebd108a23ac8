from __future__ import annotations

from dataclasses import replace

import pytest

from datapath.errors import ObjectError
from datapath.object.spec import (
    CollectionSpec,
    Constant,
    MapSpec,
    ProgramSpec,
    SourceLine,
    Substitution,
    fill_slots,
    parse_slot,
)

ENTRY = ProgramSpec("cil_entry", "from-container", 3, bytes(32), ((0, "calls_65535"), (2, "shared")), ((1, 4),))
TAIL = ProgramSpec("tail", "2/7", 3, bytes(16), ((0, "shared"),), (), (2, 7))
POLICY = ProgramSpec("handle_policy", "1/0xffff", 3, bytes(16), (), (), (1, 65535))
MAPS = (
    MapSpec("calls_65535", 3, 4, 4, 10, pinned=True, id=2),
    MapSpec("call_policy", 3, 4, 4, 65536, pinned=True, id=1),
    MapSpec("shared", 1, 8, 8, 10),
    MapSpec("outer", 12, 4, 4, 2, inner=MapSpec("", 1, 8, 8, 10), contents={1: "shared"}),
)
PROGRAMS = {p.name: p for p in (ENTRY, TAIL, POLICY)}


@pytest.fixture
def spec() -> CollectionSpec:
    return CollectionSpec(
        path="test.o",
        maps=fill_slots("test.o", MAPS, PROGRAMS),
        programs=PROGRAMS,
        constants={"ID": Constant("ID", 0, 2), "ADDRESS": Constant("ADDRESS", 4, 4)},
        data=b"\xff\xff\0\0\1\2\3\4",
        license="GPL",
    )


@pytest.mark.parametrize(
    ("section", "slot"),
    [
        ("2/7", (2, 7)),
        ("1/0xffff", (1, 65535)),
        ("4/0X00Ab", (4, 171)),
        ("2/010", (2, 10)),
        ("tc/tail", None),
        ("2/", None),
        ("2/7/8", None),
        ("-1/7", None),
        ("from-container", None),
    ],
)
def test_numbered_sections(section: str, slot: tuple[int, int] | None) -> None:
    assert parse_slot(section) == slot


def test_programs_of_numbered_sections_fill_the_map_of_that_id(spec: CollectionSpec) -> None:
    assert spec.maps["calls_65535"].contents == {7: "tail"}
    assert spec.maps["call_policy"].contents == {65535: "handle_policy"}
    assert spec.maps["shared"].contents == {}


def test_derived_properties() -> None:
    assert ENTRY.instructions == 4
    assert replace(ENTRY, map_refs=((0, "b"), (2, "a"), (4, "b"))).maps == ("b", "a")


def test_slot_of_an_unknown_map_names_program_and_section() -> None:
    with pytest.raises(ObjectError, match=r"program tail \(section 2/7\): no map has the id 2"):
        fill_slots("test.o", MAPS[1:], PROGRAMS)


def test_slot_used_twice_names_both_programs() -> None:
    other = replace(TAIL, name="other", section="2/0x7")
    with pytest.raises(ObjectError, match=r"program other \(section 2/0x7\): slot 7 of calls_65535 already holds tail"):
        fill_slots("test.o", MAPS, {**PROGRAMS, "other": other})


def test_map_id_used_twice() -> None:
    with pytest.raises(ObjectError, match="maps calls_65535 and again have the same id 2"):
        fill_slots("test.o", (*MAPS, MapSpec("again", 3, 4, 4, 1, id=2)), {})


def test_constants_are_written_in_their_size(spec: CollectionSpec) -> None:
    changed = spec.substitute(Substitution({"ID": 0x1234, "ADDRESS": 0x9502F40A}))
    assert changed.data == b"\x34\x12\0\0\x0a\xf4\x02\x95"
    assert changed.programs == spec.programs
    assert spec.data == b"\xff\xff\0\0\1\2\3\4"


def test_names_move_maps_sections_slots_and_references(spec: CollectionSpec) -> None:
    names = {"calls_65535": "calls_00123", "1/0xffff": "1/0x007b", "shared": "SHARED"}
    changed = spec.substitute(Substitution(names=names))
    assert set(changed.maps) == {"calls_00123", "call_policy", "SHARED", "outer"}
    assert changed.maps["calls_00123"] == replace(spec.maps["calls_65535"], name="calls_00123")
    assert changed.maps["call_policy"].contents == {123: "handle_policy"}
    assert changed.maps["outer"].contents == {1: "SHARED"}
    assert changed.programs["handle_policy"].section == "1/0x007b"
    assert changed.programs["handle_policy"].slot == (1, 123)
    assert changed.programs["cil_entry"].map_refs == ((0, "calls_00123"), (2, "SHARED"))
    assert spec.maps["call_policy"].contents == {65535: "handle_policy"}


def test_two_sections_can_swap(spec: CollectionSpec) -> None:
    extra = replace(TAIL, name="tail8", section="2/8", slot=(2, 8))
    programs = {**PROGRAMS, "tail8": extra}
    both = replace(spec, programs=programs, maps=fill_slots("test.o", MAPS, programs))
    changed = both.substitute(Substitution(names={"2/7": "2/8", "2/8": "2/7"}))
    assert changed.maps["calls_65535"].contents == {8: "tail", 7: "tail8"}


@pytest.mark.parametrize(
    ("sub", "message"),
    [
        (Substitution({"MISSING": 1}), "no constant MISSING"),
        (Substitution({"ID": 0x10000}), "value 0x10000 of constant ID does not fit its 2 bytes"),
        (Substitution({"ADDRESS": -1}), "does not fit its 4 bytes"),
        (Substitution(names={"missing": "gnissim"}), "no map or section missing to rename"),
        (Substitution(names={"shared": "share"}), "the length must stay the same"),
        (
            Substitution(names={"calls_65535": "call_policy"}),
            "would be called call_policy",
        ),
    ],
    ids=["constant", "too large", "negative", "name", "length", "taken"],
)
def test_refused_substitutions(spec: CollectionSpec, sub: Substitution, message: str) -> None:
    with pytest.raises(ObjectError, match=message):
        spec.substitute(sub)


def test_lenient_substitution_ignores_only_missing_constants(spec: CollectionSpec) -> None:
    assert spec.substitute(Substitution({"MISSING": 1}), strict=False) == spec
    with pytest.raises(ObjectError):
        spec.substitute(Substitution({"ID": 1 << 16}), strict=False)
    with pytest.raises(ObjectError):
        spec.substitute(Substitution(names={"missing": "gnissim"}), strict=False)


def test_equality_does_not_look_at_the_path(spec: CollectionSpec) -> None:
    assert replace(spec, path="elsewhere") == spec
    assert replace(spec, license="BSD") != spec


def test_a_source_line_without_text_is_a_place_alone() -> None:
    assert str(SourceLine("library/bpf_lxc.c", 160, "return 0;")) == "bpf_lxc.c:160 `return 0;`"
    # What a lab compiles has no text: clang does not find a source by the name that the object has for it.
    assert str(SourceLine("library/bpf_lxc.c", 160, "")) == "bpf_lxc.c:160"

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath.base.bpftypes import MapType
from datapath.object.mapdefs import data_map
from datapath.object.reader import read_object
from datapath.object.spec import DataSection, MapSpec

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

PROGRAM = '__section("tc") int cil_one(void *c) { return 0; }'


def maps_of(source: str, compile_c: Compile) -> dict[str, MapSpec]:
    return dict(read_object(compile_c(source + PROGRAM)).spec.maps)


def test_variables_lie_in_an_array_of_one_entry() -> None:
    assert data_map(DataSection(".bss", 300, is_zero=True), None) == MapSpec(".bss", MapType.ARRAY, 4, 300, 1)
    assert data_map(DataSection(".rodata.x", 8), None) == MapSpec(".rodata.x", MapType.ARRAY, 4, 8, 1, flags=1 << 7)


def test_more_than_a_map_holds_is_a_problem() -> None:
    assert data_map(DataSection(".bss", 1 << 40, is_zero=True), None).problem.startswith("1099511627776 bytes are more")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("1, 4, 8, 16", MapSpec("m", 1, 4, 8, 16)),
        ("1, 4, 8, 16, 1", MapSpec("m", 1, 4, 8, 16, 1)),
        ("1, 4, 8, 16, 1, 0", MapSpec("m", 1, 4, 8, 16, 1)),
        ("1, 4, 8, 16, 1, 3, 2", MapSpec("m", 1, 4, 8, 16, 1, pinned=True, id=3)),
        ("1, 4, 8, 16, 1, 3, 0", MapSpec("m", 1, 4, 8, 16, 1, id=3)),
        ("1, 4, 8, 16, 1, 3, 2, 0, 0", MapSpec("m", 1, 4, 8, 16, 1, pinned=True, id=3)),
        ("4, 0, 0, 16", MapSpec("m", MapType.PERF_EVENT_ARRAY, 4, 4, 16)),
    ],
    ids=["16 bytes", "20 bytes", "24 bytes", "28 bytes", "28 bytes, not pinned", "36 bytes", "sizes left out"],
)
def test_legacy_definitions_are_told_by_their_size(words: str, expected: MapSpec, compile_c: Compile) -> None:
    count = words.count(",") + 1
    source = f'struct old {{ __u32 words[{count}]; }}; struct old __section("maps") m = {{ {{ {words} }} }};'
    assert maps_of(source, compile_c) == {"m": expected}


def test_a_legacy_map_of_maps_has_the_map_of_its_inner_id(compile_c: Compile) -> None:
    source = (
        'struct bpf_elf_map __section("maps") inner = { 2, 4, 8, 4, 0, 5, 0 };'
        'struct bpf_elf_map __section("maps") outer = { 12, 4, 4, 2, 0, 6, 2, 5 };'
    )
    found = maps_of(source, compile_c)
    assert found["outer"].inner == found["inner"] == MapSpec("inner", MapType.ARRAY, 4, 8, 4, id=5)


def test_numbers_of_64_bits_are_read(compile_c: Compile) -> None:
    """libbpf's __ulong is an enum, not a pointer to an array."""
    source = (
        "struct { __uint(type, 30); __uint(value_size, 4); __uint(max_entries, 8);"
        ' enum { extra_of_m = 0x100000005ull } map_extra; } m __section(".maps");'
    )
    assert maps_of(source, compile_c)["m"].map_extra == 0x100000005


def test_a_number_that_no_definition_holds_is_a_problem(compile_c: Compile) -> None:
    source = (
        "struct { __uint(type, 1); __type(key, __u32); __type(value, __u32);"
        ' enum { entries_of_m = 0x100000005ull } max_entries; } m __section(".maps");'
    )
    assert maps_of(source, compile_c)["m"].problem == "max_entries is 4294967301, more than 32 bits hold"


def test_maps_of_maps_and_programs_hold_descriptors_of_four_bytes(compile_c: Compile) -> None:
    source = (
        "struct shape { __uint(type, 2); __type(key, __u32); __type(value, __u64); __uint(max_entries, 8); };"
        'struct { __uint(type, 13); __uint(max_entries, 4); __array(values, struct shape); } maps __section(".maps");'
        'struct { __uint(type, 3); __uint(max_entries, 4); __array(values, int ()); } programs __section(".maps");'
    )
    found = maps_of(source, compile_c)
    assert [(m.key_size, m.value_size) for m in found.values()] == [(4, 4), (4, 4)]
    assert found["maps"].inner == MapSpec("", MapType.ARRAY, 4, 8, 8)

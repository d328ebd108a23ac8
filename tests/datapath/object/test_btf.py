from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath.object import btf
from datapath.object.btf import Btf, BtfError, Kind
from datapath.object.elffile import read

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

SOURCE = r"""
typedef __u32 word;
struct pair { __u8 a; __u32 b; };
struct everything {
    __u8 first;
    union { __u32 ip4; __u32 ip6[4]; };
    word numbers[3];
    const volatile struct pair pairs[2];
    void *pointer;
    __u16 low:3, high:7;
    __u64 wide:40;
} __attribute__((packed));
typedef struct everything all;
struct everything keep_it = { .first = 1 };
struct holder { struct { __u16 x, y; } point; } keep_holder = { { 1, 2 } };
all *keep_alias;
struct {
    __uint(type, 1); __type(key, struct pair); __type(value, __u64);
    __uint(max_entries, 77); __uint(map_flags, 1); __uint(pinning, 1);
} table __section(".maps");
__section("tc") int cil_one(struct __sk_buff *skb) { return map_lookup_elem(&table, skb) != 0; }
"""


@pytest.fixture(scope="module")
def section(compile_c: Compile) -> bytes:
    elf = read("snippet", compile_c(SOURCE).read_bytes())
    found = elf.section(".BTF")
    assert found is not None
    return elf.content(found)


@pytest.fixture(scope="module")
def types(section: bytes) -> Btf:
    return btf.parse(section)


def test_layout_has_every_field_in_bytes(types: Btf) -> None:
    assert types.struct_layout("everything") == {
        "first": (0, 1),
        "ip4": (1, 4),
        "ip6": (1, 16),
        "numbers": (17, 12),
        "pairs": (29, 16),
        "pointer": (45, 8),
        "low": (53, 1),
        "high": (53, 2),
        "wide": (54, 6),
    }
    assert types.struct_layout("pair") == {"a": (0, 1), "b": (4, 4)}
    assert types.struct_layout("holder") == {"point": (0, 4)}


def test_layout_is_found_by_a_typedef(types: Btf) -> None:
    assert types.struct_layout("all") == types.struct_layout("everything")


@pytest.mark.parametrize("name", ["missing", "table", "cil_one", "first"])
def test_layout_of_what_is_no_struct(types: Btf, name: str) -> None:
    with pytest.raises(BtfError, match=f"no struct or union or typedef {name}"):
        types.struct_layout(name)


def test_sizes_go_through_typedefs_and_arrays(types: Btf) -> None:
    assert types.size(types.find("word", Kind.TYPEDEF)) == 4
    assert types.size(types.find("everything", Kind.STRUCT)) == 60
    with pytest.raises(BtfError, match="has no size"):
        types.size(0)


def test_map_definition_has_what_was_set(types: Btf) -> None:
    definition = btf.map_definition(types, "table")
    assert definition.inner is None
    assert definition.numbers == {
        "type": 1, "key_size": 8, "value_size": 8, "max_entries": 77, "map_flags": 1, "pinning": 1,
    }  # fmt: skip


def test_unknown_type_ids_are_refused(types: Btf) -> None:
    with pytest.raises(BtfError, match="no type 100000"):
        types.resolve(100000)


@pytest.mark.parametrize("length", [0, 10, 24, 60, -1])
def test_truncated_section(section: bytes, length: int) -> None:
    with pytest.raises(BtfError):
        btf.parse(section[:length])


def test_foreign_bytes(section: bytes) -> None:
    with pytest.raises(BtfError, match="magic 0x9feb"):
        btf.parse(b"\xeb\x9f" + section[2:])

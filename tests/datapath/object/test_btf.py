from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from datapath.object import btf
from datapath.object.btf import Btf, BtfError, TypeKind
from datapath.object.elffile import read
from datapath.object.reader import read_object

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
def test_the_layout_of_what_is_no_struct_is_an_error(types: Btf, name: str) -> None:
    with pytest.raises(BtfError, match=f"no struct or union or typedef {name}"):
        types.struct_layout(name)


def test_sizes_go_through_typedefs_and_arrays(types: Btf) -> None:
    assert types.size(types.find("word", TypeKind.TYPEDEF)) == 4
    assert types.size(types.find("everything", TypeKind.STRUCT)) == 60
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
def test_a_truncated_section_is_refused(section: bytes, length: int) -> None:
    with pytest.raises(BtfError):
        btf.parse(section[:length])


def test_bytes_of_another_format_are_refused(section: bytes) -> None:
    with pytest.raises(BtfError, match="magic 0x9feb"):
        btf.parse(b"\xeb\x9f" + section[2:])


SPECIAL = r"""
struct bpf_timer { __u64 opaque[2]; };
struct bpf_spin_lock { __u32 val; };
struct plain { __u32 number; struct plain *next; };
struct timed { int number; struct { struct bpf_timer timers[2]; } inner; };
typedef const volatile struct { struct bpf_spin_lock lock; } locked;
struct pointed { struct plain __attribute__((btf_type_tag("kptr"))) *kept; };
struct holder { struct bpf_timer *elsewhere; };
struct plain keep_plain; struct timed keep_timed; locked keep_locked; struct pointed keep_pointed;
struct holder keep_holder;
"""


@pytest.mark.parametrize(
    ("name", "special"), [("plain", False), ("timed", True), ("locked", True), ("pointed", True), ("holder", False)]
)
def test_the_kernel_has_to_know_types_with_locks_timers_and_kernel_pointers(
    name: str, special: bool, compile_c: Compile
) -> None:
    elf = read("snippet", compile_c(SPECIAL).read_bytes())
    section = elf.section(".BTF")
    assert section is not None
    types = btf.parse(elf.content(section))
    assert types.has_special_fields(types.find(name, TypeKind.STRUCT, TypeKind.TYPEDEF)) is special


def test_sections_get_the_sizes_and_offsets_that_the_compiler_leaves_open(compile_c: Compile) -> None:
    source = 'volatile __u32 a = 1; volatile __u64 b = 2; extern int missing __section(".ksyms"); __u64 c;'
    path = compile_c(source + '__section("tc") int cil_one(void *x) { return a + (long)&missing; }')
    elf = read("snippet", path.read_bytes())
    fixed = btf.parse(read_object(path).spec.btf)
    data = fixed[fixed.find(".data", TypeKind.DATASEC)]
    section = elf.section(".data")
    assert section is not None
    assert data.value == section.size
    offsets = {s.name: s.value for s in elf.symbols}
    placed = struct.iter_unpack("<3I", read_object(path).spec.btf[data.extra : data.extra + 12 * data.vlen])
    assert [(fixed[ident].name, at, size) for ident, at, size in placed] == sorted(
        [("a", offsets["a"], 4), ("b", offsets["b"], 8)], key=lambda item: item[1]
    )
    # The kernel knows no variables that are only declared.
    assert fixed.index_of(".ksyms", TypeKind.DATASEC) is None
    assert fixed.index_of("missing", TypeKind.VAR) is None

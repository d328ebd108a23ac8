from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.base.bpftypes import MapType, ProgType
from datapath.build.compile import Compiler, compile_source
from datapath.errors import ObjectError
from datapath.object.elffile import read
from datapath.object.reader import IN_MEMORY, ObjectImage, read_object
from datapath.object.spec import Constant, MapSpec, Substitution
from tests.datapath.snippets import HELPERS, SNIPPETS

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

OBJECT = r"""
volatile __u16 LXC_ID = 0xffff;
volatile __u32 LXC_IPV4 = 0xc0000203;
volatile __u32 NOTHING = 0;
struct bpf_elf_map __section("maps") cilium_calls_65535 = { 3, 4, 4, 47, 0, 2, 2 };
struct bpf_elf_map __section("maps") cilium_call_policy = { 3, 4, 4, 65535, 0, 1, 2 };
struct { __uint(type, 9); __type(key, __u64); __uint(value_size, 12); __uint(max_entries, 512);
         __uint(pinning, 1); } cilium_ct_65535 __section(".maps");
struct inner { __uint(type, 2); __type(key, __u32); __type(value, __u64); __uint(max_entries, 8); };
struct inner first __section(".maps");
struct { __uint(type, 12); __uint(max_entries, 4); __array(values, struct inner); }
  outer __section(".maps") = { .values = { [2] = &first } };
__section("from-container") int cil_from_container(struct __sk_buff *skb) {
    __u64 key = __fetch(LXC_IPV4);
    if (map_lookup_elem(&cilium_ct_65535, &key) || map_lookup_elem(&outer, &key)) return (__u16)__fetch(LXC_ID);
    tail_call(skb, &cilium_calls_65535, 7);
    return __fetch(NOTHING);
}
__section("2/7") int tail_seven(struct __sk_buff *skb) { return __fetch(LXC_IPV4); }
__section("1/0xffff") int handle_policy(struct __sk_buff *skb) {
    tail_call(skb, &cilium_call_policy, 3);
    tail_call(skb, &cilium_calls_65535, 7);
    return 2;
}
__section("xdp") int cil_xdp_entry(void *ctx) { return 2; }
"""

PATCH = Substitution(
    constants={"LXC_ID": 123, "LXC_IPV4": 0x9502F40A},
    names={
        "cilium_calls_65535": "cilium_calls_00123",
        "cilium_ct_65535": "cilium_ct_00123",
        "1/0xffff": "1/0x007b",
    },
)

CILIUM = os.environ.get("RELOADLAB_CILIUM_BPF")
CILIUM_DEFINES = {
    **dict.fromkeys(("ENABLE_IPV4", "ENABLE_IPV6", "ENABLE_ROUTING", "ENABLE_IDENTITY_MARK"), "1"),
    **dict.fromkeys(("ENABLE_HOST_FIREWALL", "ENABLE_IPV4_FRAGMENTS", "ENABLE_HOST_ROUTING"), "1"),
    **dict.fromkeys(("ENCAP_IFINDEX", "TUNNEL_MODE", "SKIP_DEBUG"), "1"),
    "MONITOR_AGGREGATION": "3",
    "CT_REPORT_FLAGS": "0x0002",
}


@pytest.fixture(scope="module")
def image(compile_c: Compile) -> ObjectImage:
    return read_object(compile_c(OBJECT))


def test_programs_with_sections_slots_and_types(image: ObjectImage) -> None:
    programs = image.spec.programs
    assert {p.name: (p.section, p.slot) for p in programs.values()} == {
        "cil_from_container": ("from-container", None),
        "tail_seven": ("2/7", (2, 7)),
        "handle_policy": ("1/0xffff", (1, 65535)),
        "cil_xdp_entry": ("xdp", None),
    }
    assert programs["cil_xdp_entry"].type == ProgType.XDP
    assert programs["tail_seven"].type == ProgType.SCHED_CLS
    assert programs["cil_xdp_entry"].instructions == 2
    assert image.spec.license == "GPL"


def test_maps_of_both_kinds(image: ObjectImage) -> None:
    array = MapType.ARRAY
    assert image.spec.maps == {
        "cilium_calls_65535": MapSpec(
            "cilium_calls_65535", MapType.PROG_ARRAY, 4, 4, 47, pinned=True, id=2, contents={7: "tail_seven"}
        ),
        "cilium_call_policy": MapSpec(
            "cilium_call_policy", MapType.PROG_ARRAY, 4, 4, 65535, pinned=True, id=1, contents={65535: "handle_policy"}
        ),
        "cilium_ct_65535": MapSpec("cilium_ct_65535", MapType.LRU_HASH, 8, 12, 512, pinned=True),
        "first": MapSpec("first", array, 4, 8, 8),
        "outer": MapSpec(
            "outer", MapType.ARRAY_OF_MAPS, 4, 4, 4, inner=MapSpec("", array, 4, 8, 8), contents={2: "first"}
        ),
    }


def test_references_are_at_their_instructions(image: ObjectImage) -> None:
    spec = image.spec
    entry = spec.programs["cil_from_container"]
    assert entry.maps == ("cilium_ct_65535", "outer", "cilium_calls_65535")
    for index, _ in entry.map_refs:
        load = entry.insns[8 * index : 8 * index + 16]
        assert load[0] == 0x18
        assert load[1] >> 4 == 1  # BPF_PSEUDO_MAP_FD
        assert load[4:8] == load[12:16] == bytes(4)
    # NOTHING lies in .bss: no reference, the immediate stays 0
    offsets = [spec.constants["LXC_IPV4"].offset, spec.constants["LXC_ID"].offset]
    assert [offset for _, offset in entry.constant_refs] == offsets


def test_constants_have_their_offset_size_and_word(image: ObjectImage) -> None:
    assert image.spec.constants == {"LXC_ID": Constant("LXC_ID", 0, 2), "LXC_IPV4": Constant("LXC_IPV4", 4, 4)}
    assert image.spec.data == b"\xff\xff\0\0\x03\x02\0\xc0"


def test_patched_file_reads_as_the_substituted_spec(image: ObjectImage) -> None:
    patched = image.patched(PATCH)
    again = read_object(patched)
    assert again.spec == image.spec.substitute(PATCH)
    assert again.spec != image.spec
    assert again.spec.path == IN_MEMORY
    assert len(patched) == len(image.data)
    elf = read(IN_MEMORY, patched)
    for name in (".strtab", ".BTF"):
        section = elf.section(name)
        assert section is not None
        for old, new in PATCH.names.items():
            # whole strings only: .BTF also quotes source lines, which stay as they were written
            assert old.encode() + b"\0" not in elf.content(section)
            assert new.encode() + b"\0" in elf.content(section)
    changed = sum(a != b for a, b in zip(patched, image.data, strict=True))
    assert changed < 6 + 3 * sum(len(name) for name in PATCH.names)


def test_patching_back_gives_the_first_bytes(image: ObjectImage) -> None:
    back = Substitution({"LXC_ID": 0xFFFF, "LXC_IPV4": 0xC0000203}, {new: old for old, new in PATCH.names.items()})
    assert read_object(image.patched(PATCH)).patched(back) == image.data
    assert image.patched(Substitution()) == image.data


def test_patched_file_is_reread_without_parsing_it(image: ObjectImage) -> None:
    """Same spec as read anew, with the path that messages name; the names of its maps may be those of the template."""
    for sub in (PATCH, Substitution(), Substitution(PATCH.constants), Substitution(names=PATCH.names)):
        patched = image.patched(sub)
        again = image.reread("101/bpf_lxc.o", patched)
        assert again == read_object(patched).spec
        assert again.path == "101/bpf_lxc.o"


def test_file_that_was_not_patched_from_this_one_is_not_reread(image: ObjectImage) -> None:
    """One byte of an instruction, one place of a name that is spelled several times, two maps of one name, a length."""
    patched = image.patched(PATCH)
    elf = read(IN_MEMORY, patched)
    code = elf.section("from-container")
    assert code is not None
    name = image.places["cilium_ct_65535"]
    assert len(name) > 1
    first = image.places["first"]
    twice = bytearray(image.data)
    for place in first:
        twice[place : place + 5] = b"outer"
    for other in (_changed(patched, code.offset), _changed(patched, name[-1]), bytes(twice), patched + b"\0", b""):
        assert image.reread(IN_MEMORY, other) is None


def _changed(data: bytes, at: int) -> bytes:
    """Return the bytes with another one at a place."""
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_patching_refuses_what_the_spec_refuses(image: ObjectImage) -> None:
    for sub in (Substitution({"MISSING": 1}), Substitution(names={"cilium_ct_65535": "short"})):
        with pytest.raises(ObjectError):
            image.patched(sub)
    assert image.patched(Substitution({"MISSING": 1}), strict=False) == image.data


def test_a_name_that_another_name_ends_with_is_not_patched(compile_c: Compile) -> None:
    image = read_object(
        compile_c(r"""
        struct bpf_elf_map __section("maps") other_calls = { 3, 4, 4, 1, 0, 1, 2 };
        struct bpf_elf_map __section("maps") calls = { 3, 4, 4, 1, 0, 2, 2 };
        __section("tc") int cil_a(void *c) { tail_call(c, &calls, 0); tail_call(c, &other_calls, 0); return 0; }
        """)
    )
    with pytest.raises(ObjectError, match="calls shares its spelling with another name"):
        image.patched(Substitution(names={"calls": "CALLS"}))


DEFECTS = {
    "unknown map id": (
        '__section("2/7") int tail(void *c) { return 0; }',
        "program tail (section 2/7): no map has the id 2",
    ),
    "slot twice": (
        'struct bpf_elf_map __section("maps") calls = { 3, 4, 4, 9, 0, 2, 2 };'
        '__section("2/7") int one(void *c) { return 0; } __section("2/0x7") int two(void *c) { return 0; }',
        "program two (section 2/0x7): slot 7 of calls already holds one",
    ),
    "map id twice": (
        'struct bpf_elf_map __section("maps") a = { 3, 4, 4, 9, 0, 2, 2 };'
        'struct bpf_elf_map __section("maps") b = { 3, 4, 4, 9, 0, 2, 2 };'
        '__section("tc") int one(void *c) { return 0; }',
        "maps a and b have the same id 2",
    ),
    "CO-RE": (
        "struct task { int pid; int tgid; } __attribute__((preserve_access_index));"
        '__section("tc") int cil_core(struct task *t) { return t->tgid; }',
        "program cil_core (section tc) has CO-RE relocations, which are not supported",
    ),
    "constant not aligned": (
        "volatile __u16 A = 1; volatile __u16 B = 2;"
        '__section("tc") int cil_one(void *c) { return __fetch(A) + __fetch(B); }',
        "program cil_one (section tc) refers to B at byte 2 of .data: not the start of a word in it",
    ),
    "undefined symbol": (
        'extern volatile __u32 missing; __section("tc") int cil_one(void *c) { return __fetch(missing); }',
        "program cil_one (section tc) refers to missing, which the object does not define",
    ),
    "undefined function": (
        'int missing(void); __section("tc") int cil_one(void *c) { return missing(); }',
        "program cil_one (section tc) calls missing, which the object does not define",
    ),
    "kernel function": (
        'extern int bpf_missing(void) __section(".ksyms");'
        '__section("tc") int cil_one(void *c) { return bpf_missing(); }',
        "program cil_one (section tc) calls the kernel function bpf_missing (kfunc), not supported",
    ),
    "kernel symbol": (
        'extern const int bpf_missing __section(".ksyms");'
        '__section("tc") int cil_one(void *c) { return (long)&bpf_missing; }',
        "program cil_one (section tc) refers to the kernel symbol bpf_missing (ksym), not supported",
    ),
    "kernel configuration": (
        'extern int CONFIG_HZ __section(".kconfig"); __section("tc") int cil_one(void *c) { return CONFIG_HZ; }',
        "program cil_one (section tc) refers to the kernel's configuration, CONFIG_HZ, which is not supported",
    ),
    "legacy map of an unknown size": (
        'struct old { __u32 words[8]; }; struct old __section("maps") long_map = { { 1, 4, 4, 1, 0, 2, 2, 1 } };'
        '__section("tc") int cil_one(void *c) { return 0; }',
        "map long_map: its definition has 32 bytes, of which only the first 20 are known",
    ),
    "legacy map without a size": (
        'struct old { __u32 words[3]; }; struct old __section("maps") short_map = { { 1, 4, 4 } };'
        '__section("tc") int cil_one(void *c) { return 0; }',
        "map short_map: its definition has 12 bytes only",
    ),
    "inner map": (
        'struct bpf_elf_map __section("maps") outer = { 12, 4, 4, 9, 0, 1, 0, 5 };'
        '__section("tc") int cil_one(void *c) { return 0; }',
        "map outer: no map has the id 5 of its inner map",
    ),
    "map attribute": (
        'struct { __uint(type, 1); __uint(colour, 3); } odd __section(".maps");'
        '__section("tc") int cil_one(void *c) { return map_lookup_elem(&odd, c) != 0; }',
        "map odd: unknown attribute colour",
    ),
    "map attribute of another kind": (
        'struct { int type; } odd __section(".maps");'
        '__section("tc") int cil_one(void *c) { return map_lookup_elem(&odd, c) != 0; }',
        "map odd: map attribute type is no pointer: define it with __uint or __type",
    ),
    "pinning": (
        'struct { __uint(type, 1); __uint(pinning, 2); } odd __section(".maps");'
        '__section("tc") int cil_one(void *c) { return map_lookup_elem(&odd, c) != 0; }',
        "map odd: pinning 2 is not supported (1 pins by name, 16 replaces the pin)",
    ),
    "arena": (
        'struct { __uint(type, 33); __uint(max_entries, 1); } odd __section(".maps");'
        '__section("tc") int cil_one(void *c) { return 0; }',
        "map odd: arenas are not supported",
    ),
    "struct_ops": (
        'struct operations { int number; }; struct operations odd __section(".struct_ops.link") = { 1 };',
        "map odd: struct_ops maps are not supported",
    ),
}


@pytest.mark.parametrize(("source", "defect"), DEFECTS.values(), ids=DEFECTS)
def test_what_cannot_be_loaded_is_listed_with_its_reason(compile_c: Compile, source: str, defect: str) -> None:
    path = compile_c(source)
    spec = read_object(path).spec
    assert spec.defects() == [defect]
    with pytest.raises(ObjectError) as caught:
        spec.check()
    assert str(caught.value) == f"{path}: {defect}"


def test_a_defect_leaves_the_other_items_alone(compile_c: Compile) -> None:
    spec = read_object(
        compile_c(
            'struct { __uint(type, 1); __uint(colour, 3); } odd __section(".maps");'
            "struct { __uint(type, 2); __type(key, __u32); __type(value, __u64); __uint(max_entries, 4); }"
            ' plain __section(".maps");'
            '__section("kprobe/odd") int one(void *c) { return map_lookup_elem(&odd, c) != 0; }'
            '__section("tc") int two(void *c) { __u32 key = 0; return map_lookup_elem(&plain, &key) != 0; }'
        )
    ).spec
    assert [bool(m.problem) for m in spec.maps.values()] == [True, False]
    assert {p.name: (bool(p.problem), p.maps) for p in spec.programs.values()} == {
        "one": (True, ("odd",)),
        "two": (False, ("plain",)),
    }
    with pytest.raises(ObjectError, match=r"map odd: unknown attribute colour \(and 1 more: see reloadlab inspect\)"):
        spec.check()


def test_an_object_with_maps_only_is_read(compile_c: Compile) -> None:
    source = 'struct { __uint(type, 1); __type(key, __u32); __uint(max_entries, 4); } alone __section(".maps");'
    spec = read_object(compile_c(source)).spec
    assert (list(spec.maps), list(spec.programs), spec.defects()) == (["alone"], [], [])


def test_maps_without_btf_are_named(compile_c: Compile) -> None:
    path = compile_c(
        'struct { __uint(type, 1); __type(key, __u32); __uint(max_entries, 4); } alone __section(".maps");'
        '__section("tc") int cil_one(void *c) { return map_lookup_elem(&alone, c) != 0; }'
    )
    data = bytearray(path.read_bytes())
    section = read(str(path), bytes(data)).section(".BTF")
    assert section is not None
    data[section.offset : section.offset + 2] = b"no"
    defects = read_object(bytes(data)).spec.defects()
    assert defects == [
        "section .BTF cannot be read: magic 0x6f6e, version 1: not the BTF that we know",
        "map alone: defined in .maps without .BTF: compile with -g",
    ]


def test_maps_of_iproute2s_shorter_kind(compile_c: Compile) -> None:
    """Seven words: what struct bpf_elf_map was before it had inner maps."""
    source = (
        'struct old { __u32 words[7]; }; struct old __section("maps") calls = { { 3, 4, 4, 9, 0, 2, 2 } };'
        '__section("2/1") int tail(void *c) { return 0; }'
    )
    maps = read_object(compile_c(source)).spec.maps
    assert maps == {"calls": MapSpec("calls", MapType.PROG_ARRAY, 4, 4, 9, pinned=True, id=2, contents={1: "tail"})}


def test_a_map_that_takes_the_pins_place(compile_c: Compile) -> None:
    source = (
        "struct { __uint(type, 3); __uint(key_size, 4); __uint(value_size, 4); __uint(max_entries, 9);"
        ' __uint(pinning, 16); __array(values, int ()); } calls __section(".maps") ='
        " { .values = { [3] = (void *)&tail } };"
    )
    text = "int tail(void *c); " + source + '__section("tc") int tail(void *c) { tail_call(c, &calls, 3); return 0; }'
    (calls,) = read_object(compile_c(text)).spec.maps.values()
    assert calls == MapSpec("calls", 3, 4, 4, 9, pinned=True, replace_pin=True, contents={3: "tail"})


def test_constants_of_every_section_can_be_substituted(compile_c: Compile) -> None:
    image = read_object(
        compile_c(
            "volatile __u32 FIRST = 1; volatile __u16 SHORT = 2; const volatile __u32 SECOND = 3;"
            '__section(".rodata.config") const volatile __u64 THIRD = 4;'
            '__section("tc") int cil_one(void *c) { return __fetch(FIRST) + __fetch(SECOND) + THIRD; }'
        )
    )
    values = {"FIRST": 11, "SECOND": 13, "THIRD": 14}
    spec = image.spec.substitute(Substitution(values))
    assert {name: spec.value(c) for name, c in spec.constants.items()} == {**values, "SHORT": 2}
    assert spec.content(".rodata.config") == (14).to_bytes(8, "little")
    assert read_object(image.patched(Substitution(values))).spec == spec


YARDSTICK = os.environ.get("RELOADLAB_EBPF_TESTDATA")


@pytest.mark.skipif(YARDSTICK is None, reason="RELOADLAB_EBPF_TESTDATA does not name a checkout of cilium/ebpf")
def test_every_object_of_another_librarys_tests_is_listed() -> None:
    """Those that are meant to be invalid as well: what is wrong in them is named."""
    paths = sorted(path for path in Path(str(YARDSTICK)).rglob("*-el.elf") if "testdata" in path.parts)
    assert len(paths) >= 30
    listed = {path.name: read_object(path).spec for path in paths}
    assert [name for name, spec in listed.items() if not (spec.maps or spec.programs or spec.btf)] == []
    for name in ("arena", "invalid_map", "kfunc", "ksym", "kconfig", "struct_ops", "manyprogs"):
        assert listed[f"{name}-el.elf"].defects(), name
    for name in ("strings", "subprog_reloc", "map_spin_lock", "iproute2_map_compat"):
        assert listed[f"{name}-el.elf"].defects() == [], name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"", "not an ELF file"),
        (lambda d: b"#include <stdio.h>\n", "not an ELF file"),
        (lambda d: d[:40], "truncated: 40 bytes"),
        (lambda d: d[:-1], "truncated: the section table ends at byte"),
        (lambda d: d[:5] + b"\2" + d[6:], "big-endian object"),
        (lambda d: d[:18] + b"\x3e\0" + d[20:], r"object of another architecture \(ELF machine 62, BPF is 247\)"),
        (lambda d: d[:4] + b"\1" + d[5:], "object of another architecture"),
        (lambda d: d[:16] + b"\2\0" + d[18:], "not a relocatable object"),
        (lambda d: d[:60] + b"\0\0" + d[62:], "no section table"),
    ],
    ids=["empty", "text", "header", "cut", "big endian", "x86", "32 bit", "executable", "no sections"],
)
def test_what_is_no_bpf_object_is_refused_with_its_reason(image: ObjectImage, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(ObjectError, match=message):
        read_object(change(image.data))


def test_a_native_object_and_a_missing_file_are_refused(tmp_path: Path, compiler: Compiler) -> None:
    source = tmp_path / "native.c"
    source.write_text("int main(void) { return 0; }")
    native = tmp_path / "native.o"
    subprocess.run([compiler.path, "-c", source, "-o", native], check=True)
    with pytest.raises(ObjectError, match="another architecture"):
        read_object(native)
    with pytest.raises(ObjectError, match="No such file or directory"):
        read_object(tmp_path / "missing.o")


def test_every_truncation_is_an_object_error(image: ObjectImage) -> None:
    for length in range(0, len(image.data), 7):
        with pytest.raises(ObjectError):
            read_object(image.data[:length])


def test_damaged_bytes_give_an_object_or_an_object_error(image: ObjectImage, compile_c: Compile) -> None:
    chance = random.Random(4093531)
    refused = 0
    others = ("functions that call each other", "function as an argument", "spin lock", "string")
    whole = [image.data, *(compile_c(HELPERS + SNIPPETS[name].source).read_bytes() for name in others)]
    for number in range(1500):
        data = bytearray(whole[number % len(whole)])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read_object(bytes(data)).spec.defects()
        except ObjectError:
            refused += 1
    # Section and symbol tables are damaged often enough for this to mean something.
    assert refused > 10


@pytest.mark.skipif(CILIUM is None, reason="RELOADLAB_CILIUM_BPF does not name the bpf/ of a Cilium checkout")
@pytest.mark.parametrize(
    ("name", "programs", "instructions"), [("lxc", 21, 14074), ("host", 18, 16321), ("overlay", 6, 861)]
)
def test_cilium_objects(name: str, programs: int, instructions: int, tmp_path: Path, compiler: Compiler) -> None:
    library = Path(str(CILIUM))
    output = compile_source(
        library / f"bpf_{name}.c",
        tmp_path / "object.o",
        includes=(library, library / "include"),
        defines=CILIUM_DEFINES,
        compiler=compiler,
    )
    image = read_object(output)
    assert len(image.spec.programs) == programs
    if compiler.major == 16:  # another compiler, another number
        assert sum(p.instructions for p in image.spec.programs.values()) == instructions
    constants = {key: 77 for key in ("LXC_ID", "LXC_IPV4", "NODE_MAC_1") if key in image.spec.constants}
    sections = {p.section for p in image.spec.programs.values()}
    names = {"1/0xffff": "1/0x007b"} if "1/0xffff" in sections else {}
    calls = next(m.name for m in image.spec.maps.values() if m.id == 2)
    sub = Substitution(constants, {**names, calls: calls.replace("65535", "00123")})
    assert read_object(image.patched(sub)).spec == image.spec.substitute(sub)

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.base.bpftypes import MapType, ProgType
from datapath.object.reader import read_object
from datapath.object.spec import Substitution
from tests.datapath.snippets import HELPERS, MAIN, SNIPPETS

if TYPE_CHECKING:
    from datapath.build.compile import Compiler
    from datapath.object.spec import CollectionSpec
    from tests.datapath.conftest import Compile

CALL, LD_IMM64, PSEUDO_CALL, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_FUNC = 0x85, 0x18, 1, 1, 2, 4


@pytest.mark.parametrize("name", SNIPPETS)
def test_objects_of_other_projects_are_read_whole(name: str, compile_c: Compile) -> None:
    snippet = SNIPPETS[name]
    spec = read_object(compile_c(HELPERS + snippet.source)).spec
    assert spec.defects() == []
    assert list(spec.programs) == ["tc_main"]
    program = spec.programs["tc_main"]
    assert program.type == ProgType.SCHED_CLS
    assert set(program.maps) == set(snippet.maps)
    assert set(program.subprograms) == set(snippet.subprograms)
    assert program.constant_refs == ()


@pytest.mark.parametrize("name", [name for name, snippet in SNIPPETS.items() if snippet.subprograms])
def test_calls_lead_to_the_functions_behind_the_program(name: str, compile_c: Compile) -> None:
    program = read_object(compile_c(HELPERS + SNIPPETS[name].source)).spec.programs["tc_main"]
    starts = {0}
    for at in range(0, len(program.insns), 8):
        op, source = program.insns[at], program.insns[at + 1] >> 4
        target = at // 8 + 1 + int.from_bytes(program.insns[at + 4 : at + 8], "little", signed=True)
        if (op, source) in ((CALL, PSEUDO_CALL), (LD_IMM64, PSEUDO_FUNC)):
            assert 0 < target < program.instructions
            starts.add(target)
    assert len(starts) == 1 + len(program.subprograms)
    # The kernel wants to know every function: a record each, at its first instruction.
    records = [int.from_bytes(program.debug.func_info[at : at + 4], "little") for at in range(0, 8 * len(starts), 8)]
    assert set(records) == starts
    assert len(program.debug.func_info) == 8 * len(starts)


def test_an_address_names_the_map_and_the_byte_in_it(compile_c: Compile) -> None:
    spec = read_object(
        compile_c(
            "volatile __u32 first = 1; volatile __u64 second = 2;"
            "volatile __u8 third[100]; volatile __u8 fourth[100] = { 3 };"
            f"{MAIN} {{ return first + second + third[skb->len & 63] + fourth[skb->len & 63]; }}"
        )
    ).spec
    program = spec.programs["tc_main"]
    places = {}
    for index, name in program.map_refs:
        insn = program.insns[8 * index : 8 * index + 16]
        assert (insn[0], insn[1] >> 4, insn[4:8]) == (LD_IMM64, PSEUDO_MAP_VALUE, bytes(4))
        places[name, int.from_bytes(insn[12:16], "little")] = index
    data = {name: spec.constants[name].offset for name in ("first", "second")}
    assert {(".data", offset) for offset in data.values()} < places.keys()
    assert {name for name, _ in places} == {".data", ".bss"}
    assert spec.maps[".bss"].value_size == 100
    assert (spec.maps[".data"].type, spec.maps[".data"].key_size) == (MapType.ARRAY, 4)


def test_a_constant_taken_for_its_value_stays_a_word_beside_variables_with_an_address(compile_c: Compile) -> None:
    """Cilium's constants and C's variables may share .data: each load is told by what is done with it."""
    spec = read_object(
        compile_c(
            "volatile __u32 LXC_ID = 7; volatile __u32 counter = 1; volatile __u32 zero;"
            f"{MAIN} {{ __u32 id = __fetch(LXC_ID), none = __fetch(zero); return ++counter + id + none; }}"
        )
    ).spec
    program = spec.programs["tc_main"]
    assert [offset for _, offset in program.constant_refs] == [spec.constants["LXC_ID"].offset]
    assert program.maps == (".data",)


def test_a_constant_handed_to_a_function_stays_a_word(compile_c: Compile) -> None:
    spec = read_object(
        compile_c(
            "volatile __u32 LXC_ID = 7;"
            "static __attribute__((noinline)) int twice(__u32 x) { return x * 2; }"
            f"{MAIN} {{ return twice(__fetch(LXC_ID)); }}"
        )
    ).spec
    assert [offset for _, offset in spec.programs["tc_main"].constant_refs] == [0]
    assert list(spec.maps) == []


def test_a_format_is_an_address(compile_c: Compile) -> None:
    """bpf_printk, as libbpf spells it: the format lies in .rodata."""
    printk = 'static const char format[] = "length %d\\n"; trace_printk(format, sizeof(format), skb->len);'
    spec = read_object(compile_c(HELPERS + f"{MAIN} {{ {printk} return 0; }}")).spec
    assert spec.defects() == []
    assert spec.programs["tc_main"].maps == (".rodata",)


KINDS = {
    "tc": (MAIN, {"tc_main": ProgType.SCHED_CLS}),
    "a function called xdp in a tc section": (
        '__section("tc") int xdp_main(struct __sk_buff *skb) { return 0; }',
        {"xdp_main": ProgType.SCHED_CLS},
    ),
    "a function called tc in an XDP section": (
        '__section("xdp") int tc_main(void *c) { return 2; }',
        {"tc_main": ProgType.XDP},
    ),
    "tail calls beside XDP": (
        'struct bpf_elf_map __section("maps") calls = { 3, 4, 4, 9, 0, 2, 2 };'
        '__section("xdp") int entry(void *c) { tail_call(c, &calls, 1); return 2; }'
        '__section("2/1") int tail(void *c) { return 2; }',
        {"entry": ProgType.XDP, "tail": ProgType.XDP},
    ),
    "tail calls beside Cilium's entry": (
        'struct bpf_elf_map __section("maps") calls = { 3, 4, 4, 9, 0, 2, 2 };'
        '__section("from-container") int entry(void *c) { tail_call(c, &calls, 1); return 2; }'
        '__section("2/1") int tail(void *c) { return 2; }',
        {"entry": ProgType.SCHED_CLS, "tail": ProgType.SCHED_CLS},
    ),
    "Cilium's XDP object": (
        'struct bpf_elf_map __section("maps") calls = { 3, 4, 4, 9, 0, 2, 2 };'
        '__section("from-netdev") int cil_xdp_entry(void *c) { tail_call(c, &calls, 1); return 2; }'
        '__section("2/1") int tail(void *c) { return 2; }',
        {"cil_xdp_entry": ProgType.XDP, "tail": ProgType.XDP},
    ),
}


@pytest.mark.parametrize(("source", "kinds"), KINDS.values(), ids=KINDS)
def test_the_section_tells_the_kind_not_the_function(
    source: str, kinds: dict[str, ProgType], compile_c: Compile
) -> None:
    text = source if source != MAIN else f"{MAIN} {{ return 0; }}"
    programs = read_object(compile_c(text)).spec.programs
    assert {p.name: p.type for p in programs.values()} == kinds
    assert not [p.problem for p in programs.values() if p.problem]


def test_kinds_that_are_not_loaded_are_named(compile_c: Compile) -> None:
    spec = read_object(
        compile_c(
            '__section("kprobe/vfs_read") int one(void *c) { return 0; }'
            '__section("cgroup/skb") int two(void *c) { return 1; }'
            '__section("freplace/two") int three(void *c) { return 1; }'
            '__section("classifier") int four(void *c) { return 0; }'
        )
    ).spec
    problems = {p.name: p.problem for p in spec.programs.values()}
    assert problems == {
        "one": "is of kind kprobe, which is not supported",
        "two": "is of kind cgroup_skb, which is not supported",
        "three": "is of kind ext, which is not supported",
        "four": "",
    }


def test_one_function_that_cannot_be_loaded_leaves_the_others_alone(compile_c: Compile) -> None:
    spec = read_object(
        compile_c(
            "extern volatile __u32 missing; volatile __u32 counter;"
            "static noinline int broken(int x) { return x + __fetch(missing); }"
            '__section("tc") int calls_it(struct __sk_buff *skb) { return broken(skb->len); }'
            '__section("tc") int refers(struct __sk_buff *skb) { return __fetch(missing); }'
            '__section("tc") int fine(struct __sk_buff *skb) { return ++counter; }',
            noinline="__attribute__((noinline))",
        )
    ).spec
    assert {p.name: p.problem for p in spec.programs.values()} == {
        "calls_it": "calls broken, which refers to missing, which the object does not define",
        "refers": "refers to missing, which the object does not define",
        "fine": "",
    }


@pytest.fixture
def strip(compiler: Compiler, tmp_path: Path) -> Callable[..., CollectionSpec]:
    """Return a function that reads an object after llvm-strip has been at it."""
    tool = shutil.which(f"llvm-strip-{compiler.major}") or shutil.which("llvm-strip")
    if tool is None:
        pytest.skip("needs llvm-strip")

    def strip(path: Path, *options: str) -> CollectionSpec:
        subprocess.run([tool, *options, path, "-o", tmp_path / "stripped.o"], check=True)
        return read_object(tmp_path / "stripped.o").spec

    return strip


def test_an_object_without_debug_sections_is_read(strip: Callable[..., CollectionSpec], compile_c: Compile) -> None:
    path = compile_c(HELPERS + SNIPPETS["functions that call each other"].source)
    spec = strip(path, "-g")
    assert spec.defects() == []
    assert spec.programs == read_object(path).spec.programs


def test_what_was_lost_with_the_symbols_is_named(strip: Callable[..., CollectionSpec], compile_c: Compile) -> None:
    """Nothing tells any more where the references led; a program without one is whole."""
    spec = strip(
        compile_c(
            "volatile __u32 counter;"
            '__section("tc/first") int first(struct __sk_buff *skb) { return ++counter; }'
            '__section("tc/second") int second(struct __sk_buff *skb) { return skb->len; }'
        )
    )
    lost = "refers to maps, variables or functions that were stripped with the symbol table"
    assert {p.name: (p.section, p.problem) for p in spec.programs.values()} == {
        "tc_first": ("tc/first", lost),
        "tc_second": ("tc/second", ""),
    }


def test_an_object_without_btf_is_read(compile_c: Compile, compiler: Compiler, tmp_path: Path) -> None:
    sources = {name: SNIPPETS[name].source for name in ("read-only constant", "static function in .text")}
    for name, text in sources.items():
        with_types = compile_c(HELPERS + text)
        plain = tmp_path / "plain.o"
        flags = [flag for flag in compiler.flags() if flag != "-g"]
        subprocess.run([compiler.path, *flags, "-c", with_types.with_suffix(".c"), "-o", plain], check=True)
        spec = read_object(plain).spec
        assert (spec.defects(), spec.btf) == ([], b""), name
        assert spec.programs["tc_main"].insns == read_object(with_types).spec.programs["tc_main"].insns


CONFIG = '__section(".rodata.config") static const {type} __config_{name} = {value};'
FETCH = 'asm volatile("%[out] = __config_{name} ll" : [out]"=r"({name}));'


def test_static_constants_of_the_configuration_are_words_of_their_width(compile_c: Compile) -> None:
    """Cilium 1.15 and 1.16: the symbol is static, the relocation names the section, the value is taken for itself."""
    values = {"label": ("__u32", 7), "half": ("__u64", 0x1122334455667788)}
    constants = "".join(CONFIG.format(type=t, name=n, value=v) for n, (t, v) in values.items())
    fetched = "".join(FETCH.format(name=name) for name in values)
    source = f"{constants}{MAIN} {{ __u64 label, half; {fetched} return label + (half >> 32) + half; }}"
    spec = read_object(compile_c(source)).spec
    program, found = spec.programs["tc_main"], spec.constants
    assert list(spec.maps) == [], "nothing is read through an address"
    half = found["__config_half"].offset
    assert sorted(offset for _, offset in program.constant_refs) == sorted(
        (found["__config_label"].offset, half, half + 4)
    )
    (low, high) = (next(i for i, offset in program.constant_refs if offset == at) for at in (half, half + 4))
    assert high == low + 1, "the upper word belongs into the second half of the load"


ARRAY = (
    "struct {{ __uint(type, 3); __uint(key_size, 4); __uint(value_size, 4); __uint(max_entries, 50); }}"
    ' {name} __section(".maps");'
)
TAIL = '__section("{section}") __attribute__((used{tag})) {kind} int {name}(struct __sk_buff *skb) {{ return 0; }}'


def test_static_tail_calls_are_programs_of_their_slots(compile_c: Compile) -> None:
    """Cilium since 1.15: they are static; in 1.19 a tag has the slot, and the map may have the endpoint's name."""
    tag = ', btf_decl_tag("tail:cilium_calls/9")'
    source = ARRAY.format(name="cilium_calls_00101")
    source += TAIL.format(section="tc/tail", tag=tag, kind="static", name="tagged")
    source += TAIL.format(section="tc", tag="", kind="", name="tc_main")
    spec = read_object(compile_c(source)).spec
    assert spec.defects() == []
    assert set(spec.programs) == {"tagged", "tc_main"}
    assert spec.maps["cilium_calls_00101"].contents == {9: "tagged"}


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        (("cilium_calls/9", "cilium_calls/9"), "slot 9 of cilium_calls_00101 already holds tail_0"),
        (("cilium_calls/9", "others/9"), "there is no such map"),
    ],
    ids=["a slot twice", "a map that is not there"],
)
def test_a_tag_that_places_nothing_is_a_defect(tags: tuple[str, str], problem: str, compile_c: Compile) -> None:
    source = ARRAY.format(name="cilium_calls_00101") + TAIL.format(section="tc", tag="", kind="", name="tc_main")
    for number, slot in enumerate(tags):
        tag = f', btf_decl_tag("tail:{slot}")'
        source += TAIL.format(section="tc/tail", tag=tag, kind="static", name=f"tail_{number}")
    assert read_object(compile_c(source)).spec.defects() == [f"program tail_1 (tag tail:{tags[1]}): {problem}"]


def test_a_static_function_without_a_slot_is_no_program(compile_c: Compile) -> None:
    source = TAIL.format(section="tc", tag="", kind="static", name="lost")
    source += TAIL.format(section="tc", tag="", kind="", name="tc_main")
    assert set(read_object(compile_c(source)).spec.programs) == {"tc_main"}


def test_a_policy_program_without_a_section_of_its_own_is_in_the_slot_of_its_endpoint(compile_c: Compile) -> None:
    """Cilium since 1.17: the endpoint is the one that the object's maps are named by, also when they are renamed."""
    source = ARRAY.format(name="cilium_call_policy") + ARRAY.format(name="cilium_calls_65535")
    source += TAIL.format(section="tc", tag="", kind="", name="handle_policy")
    spec = read_object(compile_c(source)).spec
    assert spec.maps["cilium_call_policy"].contents == {65535: "handle_policy"}
    renamed = spec.substitute(Substitution(names={"cilium_calls_65535": "cilium_calls_00101"}))
    assert renamed.maps["cilium_call_policy"].contents == {101: "handle_policy"}

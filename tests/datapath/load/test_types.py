from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from datapath.errors import BpfError, TypesUnknown, VerifierError
from datapath.kernel import bpf
from datapath.load.maps import MapSet, load_maps
from datapath.load.programs import load_programs, refused_instruction
from datapath.load.types import TypeStore
from datapath.load.verify import Verdict, verify_object
from datapath.object.btf import parse
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec, DebugInfo
from tests.datapath.snippets import HELPERS, MAIN, SNIPPETS

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

NUMBERS = (
    "struct { __uint(type, 1); __type(key, __u32); __type(value, __u64); __uint(max_entries, 4); }"
    ' numbers __section(".maps");\n'
)
REFUSED = (
    NUMBERS
    + MAIN
    + r"""
{
    __u32 key = skb->len;
    __u64 *value = map_lookup_elem(&numbers, &key);

    return *value;
}
"""
)
REFUSED_FUNCTION = (
    NUMBERS
    + "static __attribute__((noinline)) __u64 look_up(__u32 key)\n"
    + "{\n    __u64 *value = map_lookup_elem(&numbers, &key);\n\n    return *value;\n}\n"
    + MAIN
    + "\n{\n    return look_up(skb->len) + look_up(1);\n}\n"
)


@contextmanager
def maps_of(spec: CollectionSpec, types: TypeStore | None = None) -> Iterator[MapSet]:
    maps = load_maps(spec, None, types=types)
    try:
        yield maps
    finally:
        maps.close()


@pytest.mark.parametrize("source", [REFUSED, REFUSED_FUNCTION], ids=["in the program", "in a function"])
def test_a_refusal_quotes_the_line_of_the_source(source: str, compile_c: Compile) -> None:
    path = compile_c(source).with_suffix(".c")
    spec = read_object(compile_c(source)).spec
    (number,) = [n for n, line in enumerate(path.read_text().splitlines(), 1) if line == "    return *value;"]
    quoted = f"at {path.name}:{number} `return *value;`: "
    with maps_of(spec) as maps, pytest.raises(VerifierError) as caught:
        load_programs(spec, maps.maps)
    assert f"refused by the verifier: {quoted}" in str(caught.value)
    assert caught.value.summary.endswith("invalid mem access 'map_value_or_null'")
    assert caught.value.source == quoted[3:-2]
    # The kernel was told as well: its own log has the source between the instructions.
    assert "; return *value;" in caught.value.log
    (report,) = verify_object(spec).programs
    assert report.error is not None
    assert (report.error.summary, report.error.errno) == (caught.value.summary, errno.EACCES)


def test_a_refusal_without_btf_has_no_line(compile_c: Compile) -> None:
    spec = read_object(compile_c(REFUSED)).spec
    bare = {name: replace(p, debug=DebugInfo()) for name, p in spec.programs.items()}
    (report,) = verify_object(replace(spec, btf=b"", programs=bare)).programs
    assert report.error is not None
    assert report.error.source is None
    assert report.error.summary.endswith("invalid mem access 'map_value_or_null'")
    assert "at " not in report.error.summary


def test_a_program_too_large_blames_no_line() -> None:
    log = "12: (b7) r0 = 0\nBPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns"
    assert refused_instruction(log) is None
    assert refused_instruction("12: (b7) r0 = 0\nR1 !read_ok") == 12
    assert refused_instruction("unreachable insn 4") is None


def test_btf_that_the_kernel_refuses_is_left_out_and_named(compile_c: Compile) -> None:
    spec = read_object(compile_c(f"{MAIN} {{ return 7; }}")).spec
    report = verify_object(replace(spec, btf=spec.btf[:-1] + b"x"))
    assert [r.verdict for r in report.programs] == [Verdict.ACCEPTED]
    (note,) = report.notes
    assert note.startswith("the kernel refuses the object's BTF, programs were loaded without: BPF_BTF_LOAD: ")


def test_records_that_the_kernel_refuses_are_left_out_and_named(compile_c: Compile) -> None:
    spec = read_object(compile_c(f"{MAIN} {{ return skb->len + ktime_get_ns(); }}")).spec
    program = spec.programs["tc_main"]
    lines = program.debug.line_info[16:]  # the first instruction has no line: the kernel wants one
    changed = replace(program, debug=DebugInfo(program.debug.func_info, lines))
    report = verify_object(replace(spec, programs={"tc_main": changed}))
    assert [r.verdict for r in report.programs] == [Verdict.ACCEPTED]
    (note,) = report.notes
    assert note.startswith("program tc_main was loaded without func_info and line_info, which the kernel refuses: ")


def test_btf_is_loaded_once_for_all_loads(compile_c: Compile) -> None:
    spec = read_object(compile_c(HELPERS + SNIPPETS["spin lock"].source)).spec
    with TypeStore() as types:
        fds = set()
        for _ in range(3):
            with maps_of(spec, types) as maps:
                for program in load_programs(spec, maps.maps, types=types).values():
                    program.close()
            fds.add(types.fd(spec))
        assert len(fds) == 1
        assert fds != {0}
        assert types.refusal(spec) is None


def test_a_map_without_special_fields_needs_no_btf(compile_c: Compile) -> None:
    spec = read_object(compile_c(REFUSED)).spec
    with TypeStore() as types:
        assert [types.of_map(spec, item) for item in spec.maps.values()] == [None]


def test_the_kernel_is_told_the_types_of_all_maps_if_they_are_wanted(compile_c: Compile) -> None:
    spec = read_object(compile_c(NUMBERS + f"{MAIN} {{ return 0; }}")).spec
    with TypeStore(all_maps=True) as types, maps_of(spec, types) as maps:
        told = maps.maps["numbers"].info.types
        assert told is not None
        found = parse(bpf.btf_of_id(told.btf))
        assert (found.size(told.key), found.size(told.value)) == (4, 8)
    with TypeStore() as types, maps_of(spec, types) as maps:
        assert maps.maps["numbers"].info.types is None


def test_a_map_whose_types_the_kernel_would_refuse_is_not_told(compile_c: Compile) -> None:
    """The kernel takes no array whose index is anything but an integer; nobody reads an array by its types."""
    source = (
        "enum place { HERE, THERE };\n"
        "struct { __uint(type, 2); __type(key, enum place); __type(value, __u64); __uint(max_entries, 4); }"
        ' places __section(".maps");\n'
    )
    spec = read_object(compile_c(source + f"{MAIN} {{ return 0; }}")).spec
    with TypeStore(all_maps=True) as types, maps_of(spec, types) as maps:
        assert maps.maps["places"].info.types is None


@pytest.mark.parametrize("why", ["refused", "none"])
@pytest.mark.parametrize("name", ["cilium_policy_00101", "cilium_lxc", "cilium_ct4_global"])
def test_the_layout_of_what_others_wrote_is_not_guessed(name: str, why: str, compile_c: Compile) -> None:
    """The control plane reads and writes such maps by the types that the kernel knows of them."""
    types_ = (
        "__type(key, __u32); __type(value, __u64);"
        if why == "refused"
        else "__uint(key_size, 4); __uint(value_size, 8);"
    )
    source = f'struct {{ __uint(type, 1); {types_} __uint(max_entries, 4); }} {name} __section(".maps");\n'
    spec = read_object(compile_c(source + f"{MAIN} {{ return 0; }}")).spec
    said = "its object has none"
    if why == "refused":
        spec, said = replace(spec, btf=spec.btf[:-1] + b"x"), "the kernel refuses those of its object: BPF_BTF_LOAD: "
    with TypeStore(all_maps=True) as types, pytest.raises(TypesUnknown, match=f"map {name}: .*{said}"):
        load_maps(spec, None, types=types)
    with TypeStore() as types, maps_of(spec, types) as maps:
        assert maps.maps[name].info.types is None


def test_an_object_without_btf_has_no_descriptor() -> None:
    with TypeStore() as types:
        assert types.fd(CollectionSpec("none", {}, {}, {}, b"", "")) == 0


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_kernel_takes_the_btf_of_every_kind_of_object(name: str, compile_c: Compile) -> None:
    spec = read_object(compile_c(HELPERS + SNIPPETS[name].source)).spec
    with TypeStore() as types:
        assert types.fd(spec) > 0


@pytest.mark.parametrize(
    ("number", "refused"),
    [
        *((number, True) for number in (errno.EINVAL, errno.E2BIG, 524, errno.EOPNOTSUPP)),
        *((number, False) for number in (errno.EPERM, errno.ENOMEM, errno.EMFILE)),
    ],
)
def test_only_a_refusal_lets_an_object_go_without_its_btf(
    number: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: bytes) -> int:
        raise BpfError("BPF_BTF_LOAD", number, "no")

    monkeypatch.setattr(bpf, "btf_load", fail)
    spec = CollectionSpec("none", {}, {}, {}, b"", "", btf=b"btf")
    with TypeStore() as types:
        if refused:
            assert types.fd(spec) == 0
            assert types.refusal(spec) is not None
        else:
            for _ in range(2):
                with pytest.raises(BpfError, match="BPF_BTF_LOAD"):
                    types.fd(spec)

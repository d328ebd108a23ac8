from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.build.compile import Compiler, compile_source
from datapath.kernel import bpf
from datapath.load.verify import ProgramReport, Verdict, verify_object
from datapath.object.reader import read_object

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

OBJECT = r"""
struct bpf_elf_map __section("maps") calls = { 3, 4, 4, 4, 0, 2, 2 };
struct { __uint(type, 1); __type(key, __u32); __type(value, __u64); __uint(max_entries, 16);
         __uint(pinning, 1); } numbers __section(".maps");
__section("2/9") int tail_far(struct __sk_buff *skb) { return 0; }
__section("from-container") int cil_bad(struct __sk_buff *skb) {
    __u32 key = 1;
    __u64 *value = map_lookup_elem(&numbers, &key);
    return *value;
}
__section("to-container") int cil_good(struct __sk_buff *skb) {
    __u32 key = 1;
    __u64 *value = map_lookup_elem(&numbers, &key);
    return value ? *value : 0;
}
"""

CILIUM = os.environ.get("RELOADLAB_CILIUM_BPF")
DEFINES = {
    **dict.fromkeys(("ENABLE_IPV4", "ENABLE_IPV6", "ENABLE_ROUTING", "ENABLE_IDENTITY_MARK"), "1"),
    **dict.fromkeys(("ENABLE_HOST_FIREWALL", "ENABLE_IPV4_FRAGMENTS", "ENABLE_HOST_ROUTING"), "1"),
    **dict.fromkeys(("ENCAP_IFINDEX", "TUNNEL_MODE", "SKIP_DEBUG"), "1"),
    "MONITOR_AGGREGATION": "3",
    "CT_REPORT_FLAGS": "0x0002",
}
needs_cilium = pytest.mark.skipif(
    CILIUM is None, reason="RELOADLAB_CILIUM_BPF does not name the bpf/ of a Cilium checkout"
)


def test_every_program_is_reported(compile_c: Compile) -> None:
    reports = {r.name: r for r in verify_object(read_object(compile_c(OBJECT))).programs}
    assert set(reports) == {"tail_far", "cil_bad", "cil_good"}

    # Slot 9 does not exist in a map of 4: that is for a load to find out, the verifier has nothing against it.
    far, good, bad = reports["tail_far"], reports["cil_good"], reports["cil_bad"]
    assert far.error is None
    assert (far.section, far.instructions, far.verified_instructions, far.stack) == ("2/9", 2, 2, 0)

    assert good.error is None
    assert good.instructions > 8
    assert good.verified_instructions is not None
    assert good.verified_instructions >= good.instructions - 1  # a 16-byte load is looked at once
    assert good.stack == 8
    assert good.jited_size is None or good.jited_size > 20
    assert good.time_us is not None
    assert good.total_states is not None
    assert good.peak_states is not None
    assert 0 < good.peak_states <= good.total_states

    assert bad.error is not None
    assert (bad.error.program, bad.error.errno) == ("cil_bad", errno.EACCES)
    assert bad.error.summary.endswith("invalid mem access 'map_value_or_null'")
    assert bad.error.log.startswith("func#0 @0")
    assert (bad.jited_size, bad.section) == (None, "from-container")
    assert bad.verified_instructions is not None


MIXED = r"""
struct { __uint(type, 1); __uint(colour, 3); } odd __section(".maps");
struct { __uint(type, 2); __type(key, __u64); __type(value, __u64); __uint(max_entries, 4); } wide __section(".maps");
struct { __uint(type, 2); __type(key, __u32); __type(value, __u64); __uint(max_entries, 4); } plain __section(".maps");
int missing(void);
__section("kprobe/vfs_read") int of_another_kind(void *c) { return 0; }
__section("tc") int with_odd_map(void *c) { return map_lookup_elem(&odd, c) != 0; }
__section("tc") int with_wide_key(struct __sk_buff *s) { __u64 key = 0; return map_lookup_elem(&wide, &key) != 0; }
__section("tc") int calls_nothing(void *c) { return missing(); }
__section("2/7") int without_a_slot(void *c) { return 0; }
__section("tc") int fine(struct __sk_buff *s) { __u32 key = 0; return map_lookup_elem(&plain, &key) != 0; }
"""


def test_every_program_has_one_verdict_and_what_is_not_judged_a_reason(compile_c: Compile) -> None:
    report = verify_object(read_object(compile_c(MIXED)))
    verdicts = {r.name: (r.verdict, r.reason) for r in report.programs}
    refused_map = verdicts.pop("with_wide_key")
    assert verdicts == {
        "of_another_kind": (Verdict.NOT_SUPPORTED, "it is of kind kprobe, which is not supported"),
        "with_odd_map": (Verdict.NOT_SUPPORTED, "it uses map odd: unknown attribute colour"),
        "calls_nothing": (Verdict.NOT_SUPPORTED, "it calls missing, which the object does not define"),
        "without_a_slot": (Verdict.ACCEPTED, ""),
        "fine": (Verdict.ACCEPTED, ""),
    }
    # The keys of an array are four bytes: the kernel says so, not we.
    assert refused_map[0] is Verdict.NOT_SUPPORTED
    assert refused_map[1].startswith("it uses map wide, which the kernel does not create: BPF_MAP_CREATE: ")
    assert report.notes == (
        "program without_a_slot (section 2/7): no map has the id 2",
        "nothing leads to without_a_slot: a reload leaves out what is not reached",
    )
    assert report.ok


@pytest.mark.parametrize(
    ("source", "ok"),
    [
        ('__section("kprobe/x") int one(void *c) { return 0; }', False),
        ('struct bpf_elf_map __section("maps") only = { 1, 4, 4, 1, 0, 0, 0 };', False),
        ('__section("tc") int one(void *c) { return 0; } __section("kprobe/x") int two(void *c) { return 0; }', True),
        (
            '__section("tc") int one(void *c) { return 0; } __section("tc") int two(void *c) { return *(int *)8; }',
            False,
        ),
    ],
    ids=["of another kind", "maps only", "accepted and of another kind", "accepted and refused"],
)
def test_an_object_is_in_order_if_something_was_accepted_and_nothing_refused(
    source: str, ok: bool, compile_c: Compile
) -> None:
    assert verify_object(read_object(compile_c(source))).ok is ok


def test_the_kernel_and_we_count_alike(compile_c: Compile) -> None:
    spec = read_object(compile_c(OBJECT)).spec
    program = spec.programs["tail_far"]
    fd = bpf.prog_load(program.type, program.insns, spec.license)
    assert bpf.prog_info(fd).xlated_len == 8 * program.instructions
    os.close(fd)


def verify_cilium(name: str, directory: Path, compiler: Compiler, defines: dict[str, str]) -> list[ProgramReport]:
    library = Path(str(CILIUM))
    source, output = library / f"bpf_{name}.c", directory / f"{name}.o"
    includes = (library, library / "include")
    compile_source(source, output, includes=includes, defines=defines, compiler=compiler)
    return list(verify_object(read_object(output)).programs)


@needs_cilium
@pytest.mark.parametrize("name", ["lxc", "host", "overlay"])
def test_cilium_objects_are_accepted(name: str, tmp_path: Path, compiler: Compiler) -> None:
    reports = verify_cilium(name, tmp_path, compiler, DEFINES)
    assert [r.name for r in reports if r.error is not None] == []


@needs_cilium
def test_cilium_host_with_nodeport_has_one_refusal(tmp_path: Path, compiler: Compiler) -> None:
    """clang-16 spills an unset register in slot 10 where NodePort and DSR come together."""
    if compiler.major != 16:
        pytest.skip(f"what clang-16 makes of it; this is {compiler.version}")
    reports = verify_cilium("host", tmp_path, compiler, {**DEFINES, "ENABLE_NODEPORT": "1", "ENABLE_DSR": "1"})
    refused = [r for r in reports if r.error is not None]
    assert [(r.name, r.section) for r in refused] == [("tail_handle_ipv6_from_netdev", "2/10")]
    error = refused[0].error
    assert error is not None
    assert error.summary.endswith("R2 !read_ok")
    assert len(error.log) > 10000
    assert all(r.jited_size for r in reports if r.error is None)

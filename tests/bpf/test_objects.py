"""What the objects contain, that every build of them passes the verifier, and what the variations change."""

from __future__ import annotations

import itertools
import shutil
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from datapath.base.bpftypes import MapType
from datapath.build.compile import compile_source, probe_compiler
from datapath.kernel.cpus import cpu_ids
from datapath.kernel.helpers import Helper
from datapath.kernel.xdp import takes_frags
from datapath.load.verify import verify_object
from datapath.object.reader import read_object
from datapath.object.spec import MapSpec
from tests.bpf.loaded import DEVICE, HOST, LIBRARY, Build, compiled, spec_of
from tests.exhaustive import EXHAUSTIVE

SOURCES = ("bpf_lxc.c", "bpf_host.c", "bpf_overlay.c", "bpf_xdp.c")
NO_PREALLOC, NUMA_NODE = 1, 4
KTIME_GET_NS = 5
EVERYTHING = tuple(
    (name, "1")
    for name in ("ENABLE_HOST_FIREWALL", "ENABLE_HOST_ROUTING", "ENABLE_IPV4_FRAGMENTS", "ENABLE_IPV6_FRAGMENTS")
)
BUILDS = {
    "plain": (),
    "everything": EVERYTHING,
    "arp passthrough": (("ENABLE_ARP_PASSTHROUGH", "1"),),
}
EACH_PAIR = [
    pytest.param(routes, tunnel, defines, id=f"{name}-{'tunnel' if tunnel else 'native'}-{'on' if routes else 'off'}")
    for number, (name, defines) in enumerate(BUILDS.items())
    for tunnel in (False, True)
    for routes in (False, True)
    if EXHAUSTIVE or (routes == tunnel) == (number != 1)
]
"""Endpoint routes, a tunnel and options: each pair of two of them; with EXHAUSTIVE all three."""
COMPILERS = ("clang-14", "clang-16", "clang-19")

ENTRIES = {
    "bpf_lxc.c": {"from-container": "cil_from_container", "to-container": "cil_to_container"},
    "bpf_host.c": {
        "from-host": "cil_from_host",
        "to-host": "cil_to_host",
        "from-netdev": "cil_from_netdev",
        "to-netdev": "cil_to_netdev",
    },
    "bpf_overlay.c": {"from-overlay": "cil_from_overlay", "to-overlay": "cil_to_overlay"},
    "bpf_xdp.c": {"xdp.frags" if takes_frags() else "xdp": "cil_xdp_entry"},
}
SLOTS = {
    "bpf_lxc.c": {(2, n) for n in (4, 6, 7, 10, 11, 12, 13, 14, *range(25, 33))} | {(1, 123)},
    "bpf_host.c": {(2, n) for n in (7, 10, 22, 23)},
    "bpf_overlay.c": {(2, n) for n in (7, 10)},
    "bpf_xdp.c": {(2, n) for n in (7, 10)},
}


@pytest.mark.privileged
def test_a_kernel_without_the_coarse_clock_gets_programs_with_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapath.build.compile.is_known", lambda _: False)
    spec = spec_of(Build("bpf_lxc.c", defines=(("WHERE", "another-kernel"),)))
    called = {imm for program in spec.programs.values() for imm in helpers_called(program.insns)}
    assert KTIME_GET_NS in called
    assert called.isdisjoint(Helper)
    assert verify_object(spec).ok


def helpers_called(insns: bytes) -> set[int]:
    """Return the numbers of the helpers that a program calls: opcode 0x85 without a source register."""
    found = struct.iter_unpack("<BBhi", insns)
    return {imm for opcode, registers, _, imm in found if opcode == 0x85 and not registers >> 4}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["off", "on"])
def test_entry_programs_and_slots(source: str, endpoint_routes: bool) -> None:
    programs = spec_of(Build(source, endpoint_routes)).programs.values()
    assert {p.section: p.name for p in programs if p.slot is None} == ENTRIES[source]
    assert {p.slot for p in programs if p.slot is not None} == SLOTS[source]


def test_host_firewall_adds_policy_programs_and_connections() -> None:
    spec = spec_of(Build("bpf_host.c", tunnel=True, defines=EVERYTHING))
    assert spec.programs["handle_lxc_traffic"].slot == (1, HOST.id)
    assert {p.slot for p in spec.programs.values() if p.slot} == SLOTS["bpf_host.c"] | {(1, HOST.id), (2, 11), (2, 12)}
    assert CONNECTIONS.items() <= spec.maps.items()


def test_fragments_are_tracked_in_maps_that_exist_only_then() -> None:
    maps = spec_of(Build("bpf_lxc.c", tunnel=True, defines=EVERYTHING)).maps
    assert FRAGMENTS.items() <= maps.items()


MAPS = {
    "cilium_lxc": MapSpec("cilium_lxc", MapType.HASH, 20, 48, 65535, NO_PREALLOC, True),
    "cilium_metrics": MapSpec("cilium_metrics", MapType.PERCPU_HASH, 8, 16, 1024, 0, True),
    "cilium_ipcache": MapSpec("cilium_ipcache", MapType.LPM_TRIE, 24, 12, 512000, NO_PREALLOC, True),
    "cilium_call_policy": MapSpec("cilium_call_policy", MapType.PROG_ARRAY, 4, 4, 65535, 0, True, 1),
    "cilium_events": MapSpec("cilium_events", MapType.PERF_EVENT_ARRAY, 4, 4, cpu_ids(), 0, True),
    "reloadlab_hits": MapSpec("reloadlab_hits", MapType.LRU_PERCPU_HASH, 8, 8, 4096, 0, True),
}
TUNNEL = {"cilium_tunnel_map": MapSpec("cilium_tunnel_map", MapType.HASH, 20, 20, 65536, NO_PREALLOC, True)}


CONNECTIONS = {
    name: MapSpec(name, MapType.LRU_HASH, key, 56, size, 0, True)
    for name, key, size in (
        ("cilium_ct4_global", 14, 32768),
        ("cilium_ct_any4_global", 14, 16384),
        ("cilium_ct6_global", 38, 32768),
        ("cilium_ct_any6_global", 38, 16384),
    )
}
FRAGMENTS = {
    name: MapSpec(name, MapType.LRU_HASH, 40, 8, 8192, 0, True)
    for name in ("cilium_ipv4_frag_datagrams", "cilium_ipv6_frag_datagrams")
}
BUFFERS = {
    name: MapSpec(name, MapType.PERCPU_ARRAY, 4, 56, 1, 0, False)
    for name in ("cilium_tail_call_buffer4", "cilium_tail_call_buffer6")
}


def calls(name: str) -> dict[str, MapSpec]:
    return {name: MapSpec(name, MapType.PROG_ARRAY, 4, 4, 47, 0, True, 2)}


def policy(name: str) -> dict[str, MapSpec]:
    return {name: MapSpec(name, MapType.LPM_TRIE, 12, 24, 16384, NO_PREALLOC, True)}


@pytest.mark.parametrize(
    ("source", "own"),
    [
        (
            "bpf_lxc.c",
            {**calls("cilium_calls_00123"), **policy("cilium_policy_00123"), **TUNNEL, **CONNECTIONS, **BUFFERS},
        ),
        ("bpf_host.c", {**calls("cilium_calls_hostns_00001"), **policy("cilium_policy_00001"), **TUNNEL}),
        ("bpf_overlay.c", calls("cilium_calls_overlay_2")),
    ],
    ids=SOURCES[:3],
)
def test_an_object_declares_these_maps_and_no_others(source: str, own: dict[str, MapSpec]) -> None:
    found = {name: replace(item, contents={}) for name, item in spec_of(Build(source)).maps.items()}
    assert found == {**MAPS, **own}


def test_maps_of_the_xdp_object() -> None:
    """Those of the prefilter are Cilium's, but for the size of the hashes; policy arrays have programs of tc alone."""
    found = {name: replace(item, contents={}) for name, item in spec_of(Build("bpf_xdp.c")).maps.items()}
    shared = {name: MAPS[name] for name in ("cilium_metrics", "cilium_events", "reloadlab_hits")}
    scratch = MapSpec("cilium_xdp_scratch", MapType.PERCPU_ARRAY, 4, 4, 5, 0, True)
    cidrs = [
        MapSpec(f"cilium_cidr_v{version}_{kind}", map_type, key, 1, 65536, NO_PREALLOC, True)
        for version, key in ((4, 8), (6, 20))
        for kind, map_type in (("fix", MapType.HASH), ("dyn", MapType.LPM_TRIE))
    ]
    assert found == {
        **shared,
        **calls(f"cilium_calls_xdp_{DEVICE:05d}"),
        **{item.name: item for item in (scratch, *cidrs)},
    }


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("endpoint_routes", "tunnel", "defines"), EACH_PAIR)
def test_constants_are_the_only_data(
    source: str, endpoint_routes: bool, tunnel: bool, defines: tuple[tuple[str, str], ...]
) -> None:
    """No other section of data is loaded from: .data becomes immediates, .rodata would need a map."""
    elf = ELFFile(BytesIO(compiled(Build(source, endpoint_routes, tunnel, defines)).data))
    names = [section.name for section in elf.iter_sections() if section.header.sh_flags & 2 and section.data_size]
    assert not [name for name in names if name.startswith((".rodata", ".text"))]


@pytest.mark.privileged
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("endpoint_routes", "tunnel", "defines"), EACH_PAIR)
def test_the_verifier_accepts_every_build(
    source: str, endpoint_routes: bool, tunnel: bool, defines: tuple[tuple[str, str], ...]
) -> None:
    reports = verify_object(spec_of(Build(source, endpoint_routes, tunnel, defines))).programs
    assert {report.name: str(report.error) for report in reports if report.error} == {}
    assert reports


@pytest.mark.privileged
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", ["ENABLE_IPV4", "ENABLE_IPV6"])
def test_one_address_family_alone(source: str, family: str, tmp_path: Path) -> None:
    header = (LIBRARY / "node_config.h").read_text()
    (tmp_path / "node_config.h").write_text(header.replace(f"# define {family} 1", f"# undef {family}"))
    includes = (tmp_path, LIBRARY, LIBRARY / "include")
    output = compile_source(LIBRARY / source, tmp_path / "object.o", includes=includes, werror=True)
    spec = read_object(output).spec
    assert len(spec.programs) < len(compiled(Build(source)).spec.programs)
    assert not [report for report in verify_object(spec).programs if report.error]


@pytest.mark.privileged
@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_alone_with_every_compiler(source: str, name: str, tmp_path: Path) -> None:
    """With the default headers, which have the template's constants, and without a warning."""
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    includes = (LIBRARY, LIBRARY / "include")
    output = compile_source(
        LIBRARY / source,
        tmp_path / "object.o",
        includes=includes,
        defines=EVERYTHING,
        compiler=probe_compiler(name),
        werror=True,
    )
    assert not [report for report in verify_object(read_object(output)).programs if report.error]


# --- variations ---


POLICIES = {
    "type": ("POLICY_MAP_TYPE=BPF_MAP_TYPE_HASH", MapType.HASH),
    "max_entries": ("POLICY_MAP_SIZE=8192", 8192),
    "flags": ("POLICY_MAP_FLAGS=(BPF_F_NO_PREALLOC | BPF_F_NUMA_NODE)", NO_PREALLOC | NUMA_NODE),
    "key_size": ("POLICY_KEY_PAD=1", 16),
    "value_size": ("POLICY_VALUE_PAD=1", 32),
}
IPCACHE = {
    "type": ("IPCACHE_MAP_TYPE=BPF_MAP_TYPE_HASH", MapType.HASH),
    "max_entries": ("IPCACHE_MAP_SIZE=1000", 1000),
    "flags": ("IPCACHE_MAP_FLAGS=(BPF_F_NO_PREALLOC | BPF_F_NUMA_NODE)", NO_PREALLOC | NUMA_NODE),
    "key_size": ("IPCACHE_KEY_PAD=1", 28),
    "value_size": ("IPCACHE_VALUE_PAD=1", 16),
}
TUNNELS = {
    "flags": ("TUNNEL_MAP_FLAGS=0", 0),
    "max_entries": ("TUNNEL_ENDPOINT_MAP_SIZE=1000", 1000),
    "key_size": ("TUNNEL_KEY_PAD=1", 24),
    "value_size": ("TUNNEL_VALUE_PAD=1", 24),
}
TCP = {"max_entries": ("CT_MAP_SIZE_TCP=1000", 1000)}
VARIED = {
    "cilium_policy_00123": POLICIES,
    "cilium_ipcache": IPCACHE,
    "cilium_tunnel_map": TUNNELS,
    "cilium_ct4_global": TCP,
}
"""Which option changes a property of a map, and to what."""

Change = tuple[str, str]
TOGETHER: tuple[tuple[Change, ...], ...] = (
    (("cilium_policy_00123", "type"), ("cilium_ipcache", "max_entries"), ("cilium_tunnel_map", "flags")),
    (("cilium_policy_00123", "max_entries"), ("cilium_ipcache", "flags"), ("cilium_tunnel_map", "key_size")),
    (("cilium_policy_00123", "flags"), ("cilium_ipcache", "key_size"), ("cilium_tunnel_map", "value_size")),
    (("cilium_policy_00123", "key_size"), ("cilium_ipcache", "value_size"), ("cilium_tunnel_map", "max_entries")),
    (("cilium_policy_00123", "value_size"), ("cilium_ipcache", "type"), ("cilium_ct4_global", "max_entries")),
)
"""Options in one build change another property of each map: what one of them does to the map of another is seen."""


def test_every_option_that_varies_a_map_is_in_one_build() -> None:
    assert sorted(itertools.chain(*TOGETHER)) == sorted((name, field) for name in VARIED for field in VARIED[name])
    assert all(len({field for _, field in each}) == len(each) for each in TOGETHER)


@pytest.mark.privileged
@pytest.mark.parametrize(
    "changes", TOGETHER, ids=lambda each: "-".join(VARIED[n][f][0].partition("=")[0] for n, f in each)
)
def test_a_variation_changes_one_property_of_one_map(changes: tuple[Change, ...]) -> None:
    options = [VARIED[name][field][0].partition("=") for name, field in changes]
    plain = Build("bpf_lxc.c", endpoint_routes=True, tunnel=True)
    varied = spec_of(replace(plain, defines=tuple((name, value) for name, _, value in options)))
    expected = dict(spec_of(plain).maps)
    for name, field in changes:
        property_: dict[str, Any] = {field: VARIED[name][field][1]}
        for each in (name, "cilium_ct6_global") if name == "cilium_ct4_global" else (name,):
            expected[each] = replace(expected[each], **property_)
    assert varied.maps == expected
    assert not [report for report in verify_object(varied).programs if report.error]


@pytest.mark.privileged
@pytest.mark.parametrize("source", SOURCES)
def test_rejected_by_verifier_adds_one_program_that_is_refused(source: str) -> None:
    reports = verify_object(spec_of(Build(source, defines=(("REJECTED_BY_VERIFIER", "1"),)))).programs
    refused = [report for report in reports if report.error]
    assert [(report.name, report.section) for report in refused] == [("tail_rejected_by_verifier", "2/8")]
    assert "invalid access to packet" in str(refused[0].error)
    assert len(reports) == len(spec_of(Build(source)).programs) + 1

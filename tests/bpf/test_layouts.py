"""lab/layouts.py against the C: sizes and offsets from the object's BTF, numbers from the headers."""

from __future__ import annotations

import re
import struct
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address

import pytest
from elftools.elf.elffile import ELFFile

from datapath import btf
from datapath.btf import Btf
from lab import layouts
from tests.bpf.loaded import LIBRARY, Build, compiled


def btf_of(source: str) -> Btf:
    section = ELFFile(BytesIO(compiled(Build(source, tunnel=True)).data)).get_section_by_name(".BTF")
    assert section is not None
    return btf.parse(section.data())


SIZES = {
    "endpoint_key": (layouts.ENDPOINT_KEY, 20),
    "endpoint_info": (layouts.ENDPOINT_INFO, 48),
    "ipcache_key": (layouts.IPCACHE_KEY, 24),
    "remote_endpoint_info": (layouts.REMOTE_ENDPOINT_INFO, 12),
    "tunnel_key": (layouts.TUNNEL_KEY, 20),
    "tunnel_value": (layouts.TUNNEL_VALUE, 20),
    "policy_key": (layouts.POLICY_KEY, 12),
    "policy_entry": (layouts.POLICY_ENTRY, 24),
    "metrics_key": (layouts.METRICS_KEY, 8),
    "metrics_value": (layouts.METRICS_VALUE, 16),
    "hits_key": (layouts.HITS_KEY, 8),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_reference(name: str) -> None:
    packed, size = SIZES[name]
    types = btf_of("bpf_lxc.c")
    assert packed.size == size
    assert types.size(types.find(name, btf.Kind.STRUCT)) == size


ENDPOINT = layouts.EndpointInfo(0x01020304, 0x0506, 0x0708090A, "0b:0c:0d:0e:0f:10", "11:12:13:14:15:16")
FIELDS: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "endpoint_key": (
        layouts.endpoint_key(IPv6Address("2001:db8::1")),
        {"ip": IPv6Address("2001:db8::1").packed, "family": b"\2"},
    ),
    "endpoint_info": (
        ENDPOINT.pack(),
        {
            "ifindex": bytes.fromhex("04030201"),
            "lxc_id": bytes.fromhex("0605"),
            "flags": bytes.fromhex("0a090807"),
            "mac": bytes.fromhex("0b0c0d0e0f10") + bytes(2),
            "node_mac": bytes.fromhex("111213141516") + bytes(2),
        },
    ),
    "ipcache_key": (
        layouts.ipcache_key(IPv4Address("192.0.2.1"), 24),
        {"prefixlen": struct.pack("<I", 56), "family": b"\1", "ip": bytes((192, 0, 2, 1)) + bytes(12)},
    ),
    "remote_endpoint_info": (
        layouts.RemoteEndpointInfo(0x01020304, IPv4Address("192.0.2.1"), 0x0506, 7).pack(),
        {
            "sec_identity": bytes.fromhex("04030201"),
            "tunnel_endpoint": bytes((192, 0, 2, 1)),
            "node_id": bytes.fromhex("0605"),
            "key": b"\7",
        },
    ),
    "tunnel_key": (
        layouts.tunnel_key(IPv4Address("10.1.0.0")),
        {"ip": bytes((10, 1, 0, 0)) + bytes(12), "family": b"\1", "cluster_id": b"\0"},
    ),
    "tunnel_value": (
        layouts.TunnelValue(IPv4Address("192.0.2.1"), 3, 0x0405).pack(),
        {"ip": bytes((192, 0, 2, 1)) + bytes(12), "family": b"\1", "key": b"\3", "node_id": bytes.fromhex("0504")},
    ),
    "policy_key": (
        layouts.policy_key_any(egress=True, identity=0x01020304),
        {
            "prefixlen": struct.pack("<I", 40),
            "sec_label": bytes.fromhex("04030201"),
            "egress": b"\1",
            "protocol": b"\0",
            "dport": bytes(2),
        },
    ),
    "policy_entry": (
        layouts.PolicyEntry(deny=True, proxy_port=0x0102, auth_type=3, packets=4, length=5).pack(),
        {
            "proxy_port": b"\1\2",
            "deny": b"\7",  # the three flags share a byte
            "auth_type": b"\3",
            "packets": struct.pack("<Q", 4),
            "bytes": struct.pack("<Q", 5),
        },
    ),
    "metrics_key": (layouts.MetricsKey(140, 2).pack(), {"reason": bytes((140,)), "dir": b"\2"}),
    "metrics_value": (layouts.METRICS_VALUE.pack(1, 2), {"count": b"\1" + bytes(7), "bytes": b"\2" + bytes(7)}),
    "hits_key": (
        layouts.HitsKey(0x01020304, 0x0506, 7).pack(),
        {"generation": bytes.fromhex("04030201"), "source": bytes.fromhex("0605"), "program": b"\7"},
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_lies_where_the_c_code_reads_it(name: str) -> None:
    packed, fields = FIELDS[name]
    layout = btf_of("bpf_lxc.c").struct_layout(name)
    found = {field: packed[layout[field][0] : sum(layout[field])] for field in fields}
    assert found == fields


def test_all_structs_of_the_maps_are_covered() -> None:
    assert set(SIZES) == set(FIELDS)


@pytest.mark.parametrize(
    ("value", "again"),
    [
        (ENDPOINT, layouts.EndpointInfo.unpack(ENDPOINT.pack())),
        (
            layouts.EndpointInfo(0, 0, 1, None, None),
            layouts.EndpointInfo.unpack(layouts.EndpointInfo(0, 0, 1, None, None).pack()),
        ),
        (
            layouts.RemoteEndpointInfo(9, IPv4Address("192.0.2.9"), 8, 7),
            layouts.RemoteEndpointInfo.unpack(
                layouts.RemoteEndpointInfo(9, IPv4Address("192.0.2.9"), 8, 7).pack() + bytes(4)
            ),
        ),
        (
            layouts.TunnelValue(IPv4Address("192.0.2.9"), 1, 2),
            layouts.TunnelValue.unpack(layouts.TunnelValue(IPv4Address("192.0.2.9"), 1, 2).pack()),
        ),
        (
            layouts.PolicyEntry(deny=True, wildcards=False, packets=3, length=4),
            layouts.PolicyEntry.unpack(layouts.PolicyEntry(deny=True, wildcards=False, packets=3, length=4).pack()),
        ),
        (layouts.MetricsKey(140, 1), layouts.MetricsKey.unpack(layouts.MetricsKey(140, 1).pack())),
        (layouts.HitsKey(1, 2, 3), layouts.HitsKey.unpack(layouts.HitsKey(1, 2, 3).pack())),
    ],
    ids=["endpoint", "host", "remote, with words appended", "tunnel", "policy", "metrics", "hits"],
)
def test_unpack_reads_what_pack_wrote(value: object, again: object) -> None:
    assert again == value


def header(name: str) -> str:
    return (LIBRARY / "lib" / name).read_text()


def test_program_ids_are_those_of_hits_h() -> None:
    found = re.findall(r"^\tPROGRAM_(\w+) = (\d+),$", header("hits.h"), re.MULTILINE)
    assert {name: int(number) for name, number in found} == {p.name: p.value for p in layouts.Program}


def test_directions_are_those_of_metrics_h() -> None:
    found = re.findall(r"^\tMETRIC_(\w+) = (\d+),", header("metrics.h"), re.MULTILINE)
    assert {name: int(number) for name, number in found} == {d.name: d.value for d in layouts.Direction}


def test_every_drop_reason_has_its_words() -> None:
    found = re.findall(r"^#define DROP_\w+\s+\(-(\d+)\)", header("drop.h"), re.MULTILINE)
    assert sorted(map(int, found)) == sorted(layouts.DROP_REASONS)


@pytest.mark.parametrize("source", ["bpf_lxc.c", "bpf_host.c", "bpf_overlay.c"])
def test_every_program_counts_its_hits_under_its_own_number(source: str) -> None:
    text = (LIBRARY / source).read_text()
    programs = re.findall(r"^__section(?:_tail)?\([^\n]*\)\nint (\w+)", text, re.MULTILINE)
    counted = re.findall(r"^\tcount_hit\(PROGRAM_(\w+)\);$", text, re.MULTILINE)
    assert len(counted) == len(set(counted)) == len(programs)
    assert set(counted) <= {p.name for p in layouts.Program}

"""The layouts of lab/ against the C: sizes and offsets from the object's BTF, numbers from the headers."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from io import BytesIO
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from datapath.build.compile import compile_source
from datapath.load import layout
from datapath.object import btf
from datapath.object.btf import Btf
from lab.abi import conntrack, layouts, notifications, policymap, reasons
from lab.abi.record import Fields, Packed, Record
from tests.bpf.loaded import LIBRARY

EVENTS = ("notify_header", "drop_notify", "trace_notify", "policy_verdict_notify")
"""Messages are made on the stack, of which an object's BTF does not tell: these stand in a source of their own."""


@cache
def layout_types() -> Btf:
    """Return the types of the C headers, all of them."""
    with tempfile.TemporaryDirectory(prefix="reloadlab-test-") as name:
        source, directory = Path(name) / "types.c", Path(name)
        globals_ = "".join(f"struct {struct_} {struct_}_;\n" for struct_ in (*EVENTS, *(set(SIZES) - set(EVENTS))))
        headers = ("ep_config.h", "node_config.h", "lib/encap.h", "lib/enforce.h", "lib/eps.h", "lib/hits.h")
        text = "".join(f'#include "{header}"\n' for header in (*headers, "lib/ipcache.h", "lib/prefilter.h"))
        source.write_text(f"#define ENABLE_IPV4 1\n#define ENABLE_IPV6 1\n{text}{globals_}")
        compile_source(source, directory / "types.o", includes=(LIBRARY, LIBRARY / "include"))
        section = ELFFile(BytesIO((directory / "types.o").read_bytes())).get_section_by_name(".BTF")
    assert section is not None
    return btf.parse(section.data())


SIZES = {
    "endpoint_key": (layouts.ENDPOINT_KEY, 20),
    "endpoint_info": (layouts.ENDPOINT_INFO, 48),
    "ipcache_key": (layouts.IPCACHE_KEY, 24),
    "remote_endpoint_info": (layouts.REMOTE_ENDPOINT_INFO, 12),
    "tunnel_key": (layouts.TUNNEL_KEY, 20),
    "tunnel_value": (layouts.TUNNEL_VALUE, 20),
    "policy_key": (policymap.POLICY_KEY, 12),
    "policy_entry": (policymap.POLICY_ENTRY, 24),
    "metrics_key": (layouts.METRICS_KEY, 8),
    "metrics_value": (layouts.METRICS_VALUE, 16),
    "hits_key": (layouts.HITS_KEY, 8),
    "lpm_v4_key": (layouts.LPM_V4_KEY, 8),
    "lpm_v6_key": (layouts.LPM_V6_KEY, 20),
    "lpm_val": (layouts.LPM_VAL, 1),
    "ipv4_ct_tuple": (conntrack.CT_TUPLE4, 14),
    "ipv6_ct_tuple": (conntrack.CT_TUPLE6, 38),
    "ct_entry": (conntrack.CT_ENTRY, 56),
    "notify_header": (notifications.NOTIFY_HEADER, 16),
    "drop_notify": (notifications.DROP_NOTIFY, 36),
    "trace_notify": (notifications.TRACE_NOTIFY, 48),
    "policy_verdict_notify": (notifications.POLICY_VERDICT_NOTIFY, 32),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_reference(name: str) -> None:
    packed, size = SIZES[name]
    types = layout_types()
    assert packed.size == size
    assert types.size(types.find(name, btf.TypeKind.STRUCT)) == size


ENDPOINT = layouts.EndpointInfo(0x01020304, 0x0506, 0x0708090A, "0b:0c:0d:0e:0f:10", "11:12:13:14:15:16")
HEADER = notifications.NotifyHeader(1, 133, 0x0203, 0x04050607, 0x08090A0B, 0x0C0D)
DROPPED = notifications.DropNotify(HEADER, 0x01020304, 0x05060708, 0x090A0B0C, 0x0D0E, 15, -1, 0x11121314)
TRACED = notifications.TraceNotify(HEADER, 0x01020304, 0x05060708, 0x090A, 3, 0x11121314)
VERDICT = notifications.PolicyVerdictNotify(HEADER, 0x01020304, -133, 8080, 6, 2, True, 5)
CONNECTION4 = conntrack.CtTuple(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"), 0x1234, 80, 6, 1)
CONNECTION6 = conntrack.CtTuple(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), 0x1234, 80, 6, 1)
ENTRY = conntrack.CtEntry(1, 2, 3, 4, 0x01020304, 1 | 16, 5, 6, 0x0708090A, 0x0B0C0D0E, 0x0F101112)
FIELDS: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "lpm_v4_key": (
        layouts.cidr_key(IPv4Network("192.0.2.0/25")),
        {"prefixlen": bytes.fromhex("19000000"), "addr": IPv4Address("192.0.2.0").packed},
    ),
    "lpm_v6_key": (
        layouts.cidr_key(IPv6Network("2001:db8:bad::/48")),
        {"prefixlen": bytes.fromhex("30000000"), "addr": IPv6Address("2001:db8:bad::").packed},
    ),
    "lpm_val": (layouts.LPM_VAL.pack(3), {"flags": b"\3"}),
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
        layouts.TunnelKey(IPv4Address("10.1.0.0")).pack(),
        {"ip": bytes((10, 1, 0, 0)) + bytes(12), "family": b"\1", "cluster_id": b"\0"},
    ),
    "tunnel_value": (
        layouts.TunnelValue(IPv4Address("192.0.2.1"), 3, 0x0405).pack(),
        {"ip": bytes((192, 0, 2, 1)) + bytes(12), "family": b"\1", "key": b"\3", "node_id": bytes.fromhex("0504")},
    ),
    "policy_key": (
        policymap.policy_key_any(egress=True, identity=0x01020304),
        {
            "prefixlen": struct.pack("<I", 40),
            "sec_label": bytes.fromhex("04030201"),
            "egress": b"\1",
            "protocol": b"\0",
            "dport": bytes(2),
        },
    ),
    "policy_entry": (
        policymap.PolicyEntry(deny=True, proxy_port=0x0102, auth_type=3, packets=4, length=5).pack(),
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
    "ipv4_ct_tuple": (
        CONNECTION4.pack(),
        {
            "daddr": bytes((192, 0, 2, 1)),
            "saddr": bytes((198, 51, 100, 2)),
            "dport": b"\0\x50",
            "sport": b"\x12\x34",
            "nexthdr": b"\6",
            "flags": b"\1",
        },
    ),
    "ipv6_ct_tuple": (
        CONNECTION6.pack(),
        {
            "daddr": IPv6Address("2001:db8::1").packed,
            "saddr": IPv6Address("2001:db8::2").packed,
            "dport": b"\0\x50",
            "sport": b"\x12\x34",
            "nexthdr": b"\6",
            "flags": b"\1",
        },
    ),
    "ct_entry": (
        ENTRY.pack(),
        {
            "rx_packets": struct.pack("<Q", 1),
            "rx_bytes": struct.pack("<Q", 2),
            "tx_packets": struct.pack("<Q", 3),
            "tx_bytes": struct.pack("<Q", 4),
            "lifetime": bytes.fromhex("04030201"),
            "rx_closing": b"\x11",  # the flags share a word
            "tx_flags_seen": b"\5",
            "rx_flags_seen": b"\6",
            "src_sec_id": bytes.fromhex("0a090807"),
            "last_tx_report": bytes.fromhex("0e0d0c0b"),
            "last_rx_report": bytes.fromhex("1211100f"),
        },
    ),
    "notify_header": (
        HEADER.pack(),
        {
            "type": b"\1",
            "subtype": bytes((133,)),
            "source": bytes.fromhex("0302"),
            "hash": bytes.fromhex("07060504"),
            "len_orig": bytes.fromhex("0b0a0908"),
            "len_cap": bytes.fromhex("0d0c"),
            "version": b"\1\0",
        },
    ),
    "drop_notify": (
        DROPPED.pack(),
        {
            "header": HEADER.pack(),
            "src_label": bytes.fromhex("04030201"),
            "dst_label": bytes.fromhex("08070605"),
            "dst_id": bytes.fromhex("0c0b0a09"),
            "line": bytes.fromhex("0e0d"),
            "file": b"\x0f",
            "ext_error": b"\xff",
            "ifindex": bytes.fromhex("14131211"),
        },
    ),
    "trace_notify": (
        TRACED.pack(),
        {
            "header": HEADER.pack(),
            "src_label": bytes.fromhex("04030201"),
            "dst_label": bytes.fromhex("08070605"),
            "dst_id": bytes.fromhex("0a09"),
            "reason": b"\3",
            "ifindex": bytes.fromhex("14131211"),
            "orig_ip": bytes(16),
        },
    ),
    "policy_verdict_notify": (
        VERDICT.pack(),
        {
            "header": HEADER.pack(),
            "remote_label": bytes.fromhex("04030201"),
            "verdict": struct.pack("<i", -133),
            "dst_port": struct.pack("<H", 8080),
            "proto": b"\6",
            "dir": bytes((2 | 1 << 2 | 5 << 3,)),  # with the bits that share its byte
        },
    ),
    "hits_key": (
        layouts.HitsKey(0x01020304, 0x0506, 7).pack(),
        {"generation": bytes.fromhex("04030201"), "source": bytes.fromhex("0605"), "program": b"\7"},
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_lies_where_the_c_code_reads_it(name: str) -> None:
    packed, fields = FIELDS[name]
    layout = layout_types().struct_layout(name)
    found = {field: packed[layout[field][0] : sum(layout[field])] for field in fields}
    assert found == fields


VALUES: dict[str, Packed] = {
    "endpoint_key": layouts.EndpointKey(IPv6Address("2001:db8::1")),
    "endpoint_info": ENDPOINT,
    "ipcache_key": layouts.IpcacheKey(IPv4Address("192.0.2.1"), 24),
    "remote_endpoint_info": layouts.RemoteEndpointInfo(0x01020304, IPv4Address("192.0.2.1"), 0x0506, 7),
    "tunnel_key": layouts.TunnelKey(IPv4Address("10.1.0.0")),
    "tunnel_value": layouts.TunnelValue(IPv4Address("192.0.2.1"), 3, 0x0405),
    "policy_key": policymap.PolicyKey(0x01020304, True, 6, 80),
    "policy_entry": policymap.PolicyEntry(deny=True, proxy_port=0x0102, auth_type=3, packets=4, length=5),
    "metrics_key": layouts.MetricsKey(140, 2),
    "metrics_value": layouts.MetricsValue(1, 2),
    "ipv4_ct_tuple": CONNECTION4,
    "ipv6_ct_tuple": CONNECTION6,
    "ct_entry": ENTRY,
}


@pytest.mark.parametrize("name", VALUES)
def test_by_the_types_of_our_own_sources_a_value_is_the_same_as_without_types(name: str) -> None:
    """Loaders of others tell the kernel the types of our maps: then they are packed by field."""
    value, types = VALUES[name], layout_types()
    record = value.KNOWN.bind(name, Record.of_type(types, types.find(name, btf.TypeKind.STRUCT)))
    fields = {field: each for field, each in value.values().items() if field in record.fields}
    assert record.pack(fields) == value.pack()
    assert type(value).of_fields(Fields(record, value.pack())) == value


def test_connections_lie_where_tables_of_others_are_compared_with_them() -> None:
    types = layout_types()

    def fields(name: str) -> Mapping[str, tuple[int, int]]:
        return types.fields(types.find(name, btf.TypeKind.STRUCT))

    assert fields("ct_entry") == layout.OUR_CONNECTION
    assert fields("ipv4_ct_tuple") == layout.our_tuple(conntrack.CT_TUPLE4.size)
    assert fields("ipv6_ct_tuple") == layout.our_tuple(conntrack.CT_TUPLE6.size)


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
            policymap.PolicyEntry(deny=True, wildcards=False, packets=3, length=4),
            policymap.PolicyEntry.unpack(policymap.PolicyEntry(deny=True, wildcards=False, packets=3, length=4).pack()),
        ),
        (layouts.MetricsKey(140, 1), layouts.MetricsKey.unpack(layouts.MetricsKey(140, 1).pack())),
        (CONNECTION4, conntrack.CtTuple.unpack(CONNECTION4.pack())),
        (CONNECTION6, conntrack.CtTuple.unpack(CONNECTION6.pack())),
        (ENTRY, conntrack.CtEntry.unpack(ENTRY.pack())),
        (DROPPED, notifications.DropNotify.unpack(DROPPED.pack() + b"the packet")),
        (TRACED, notifications.TraceNotify.unpack(TRACED.pack() + b"the packet")),
        (VERDICT, notifications.PolicyVerdictNotify.unpack(VERDICT.pack() + b"the packet")),
        (layouts.HitsKey(1, 2, 3), layouts.HitsKey.unpack(layouts.HitsKey(1, 2, 3).pack())),
    ],
    ids=[
        "endpoint",
        "host",
        "remote, with words appended",
        "tunnel",
        "policy",
        "metrics",
        "v4",
        "v6",
        "connection",
        "drop",
        "trace",
        "verdict",
        "hits",
    ],
)
def test_unpack_reads_what_pack_wrote(value: object, again: object) -> None:
    assert again == value


def header(name: str) -> str:
    return (LIBRARY / "lib" / name).read_text()


def test_program_ids_are_those_of_hits_h() -> None:
    found = re.findall(r"^\tPROGRAM_(\w+) = (\d+),$", header("hits.h"), re.MULTILINE)
    assert {name: int(number) for name, number in found} == {p.name: p.value for p in layouts.Program}


def test_mark_of_mixed_loads_is_that_of_hits_h() -> None:
    assert re.findall(r"^#define HIT_MIXED_LOADS (\w+)$", header("hits.h"), re.MULTILINE) == [
        f"{layouts.HIT_MIXED_LOADS:#x}"
    ]
    assert max(layouts.Program) < layouts.HIT_MIXED_LOADS


@pytest.mark.parametrize(
    ("file", "prefix", "numbers"),
    [
        ("common.h", "CT", conntrack.ConnState),
        ("policy.h", "POLICY_MATCH", policymap.PolicyMatch),
        ("trace.h", "TRACE", notifications.TracePoint),
    ],
)
def test_enumerations_are_those_of_the_headers(file: str, prefix: str, numbers: type[IntEnum]) -> None:
    found = re.findall(rf"^\t{prefix}_(\w+),", header(file), re.MULTILINE)
    assert list(enumerate(found)) == [(n.value, n.name) for n in numbers]


def test_directions_are_those_of_metrics_h() -> None:
    found = re.findall(r"^\tMETRIC_(\w+) = (\d+),", header("metrics.h"), re.MULTILINE)
    assert {name: int(number) for name, number in found} == {d.name: d.value for d in layouts.MetricDirection}


def test_every_drop_reason_has_its_words() -> None:
    found = re.findall(r"^#define DROP_[A-Z]\w+\s+(?:DROP_HERE)?\(-?(\d+)\)", header("drop.h"), re.MULTILINE)
    assert set(map(int, found)) <= reasons.WORDS.keys()


def test_source_files_are_those_of_source_file_h() -> None:
    found = {int(number): name for name, number in re.findall(r'\("([\w.]+)"\) \? (\d+)', header("source_file.h"))}
    assert {n: notifications.source_file(dropped_in(n, version=1)) for n in found} == found
    files = {*LIBRARY.glob("*.c"), *LIBRARY.glob("lib/*.h")} - {LIBRARY / "lib/drop.h"}
    assert {file.name for file in files if re.search(r"\bDROP_(?!NOTIFY)[A-Z]", file.read_text())} == {*found.values()}


@pytest.mark.parametrize(
    ("number", "version", "name"),
    [
        (103, 1, "egress_policies.h or srv6.h"),
        (106, 1, "encap.h or encrypt.h or lb.h"),
        (106, 2, "encap.h or encrypt.h or lb.h"),
        (106, 3, "lb.h"),
        (110, 3, "local_delivery.h"),
        (117, 3, "classifiers.h"),
        (119, 3, None),
        (119, 1, None),
    ],
)
def test_a_number_that_releases_gave_to_several_files_has_all_their_names(
    number: int, version: int, name: str | None
) -> None:
    assert notifications.source_file(dropped_in(number, version=version)) == name


def dropped_in(number: int, *, version: int) -> notifications.DropNotify:
    head = notifications.NotifyHeader(notifications.NOTIFY_DROP, 133, 101, 0, 64, 64, version)
    return notifications.DropNotify(head, 0, 0, 0, 1, number, 0, 1)


@pytest.mark.parametrize("source", ["bpf_lxc.c", "bpf_host.c", "bpf_overlay.c", "bpf_xdp.c"])
def test_every_program_counts_its_hits_under_its_own_number(source: str) -> None:
    text = (LIBRARY / source).read_text()
    programs = re.findall(r"^(?:__section(?:_tail)?\([^\n]*\)\nint |TAIL_PROGRAM\()(\w+)", text, re.MULTILINE)
    counted = re.findall(r"^(?:\tbegin_chain\(ctx, |TAIL_PROGRAM\(\w+, \w+,\s+)PROGRAM_(\w+)", text, re.MULTILINE)
    assert len(counted) == len(set(counted)) == len(programs)
    assert set(counted) <= {p.name for p in layouts.Program}

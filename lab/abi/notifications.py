"""Messages in cilium_events: the structs of bpf/lib/events.h as Python values.

They are checked against the BTF of our own objects, like lab.abi.layouts; all numbers are little endian. Of later
releases an object's BTF says nothing: messages are made on the stack. They say their version, and only grow.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

NOTIFY_HEADER = struct.Struct("<BBHIIHH")
DROP_NOTIFY = struct.Struct("<16sIIIHBbI")
TRACE_NOTIFY = struct.Struct("<16sIIHBBI16s")
POLICY_VERDICT_NOTIFY = struct.Struct("<16sIiHBB4x")

_SOURCE_FILES: Mapping[int, str] = {
    1: "bpf_host.c",
    2: "bpf_lxc.c",
    3: "bpf_overlay.c",
    4: "bpf_xdp.c",
    101: "arp.h",
    102: "drop.h",
    103: "egress_policies.h or srv6.h",
    104: "icmp6.h",
    105: "nodeport.h",
    106: "encap.h or encrypt.h or lb.h",
    107: "encrypt.h or mcast.h",
    108: "mcast.h or ipv4.h",
    109: "conntrack.h",
    110: "l3.h or local_delivery.h",
    111: "trace.h",
    112: "encap.h",
    113: "encrypt.h",
    114: "host_firewall.h",
    115: "nodeport_egress.h",
    116: "ipv6.h",
    117: "classifiers.h",
    120: "conntrack.h",
    121: "delivery.h",
    122: "eth.h",
    123: "ip.h",
    124: "l4.h",
    125: "policy.h",
    126: "encap.h",
}
"""Source files by their number in a drop: Cilium's (bpf/source_names_to_ids.h, later bpf/lib/source_info.h), and ours
from 120 on. Releases from 1.14 to 1.19 gave some numbers to several files, one after the other: the newest is last."""

_TOLD_BY_VERSION = 3
"""The version of drops from which on the newest name of a number is the one: before, releases share the version 1."""


def source_file(drop: DropNotify) -> str | None:
    """Return the file in which a packet was dropped: all that it may be, if the message does not tell which.

    None if the number is unknown.
    """
    names = source_files(drop.file)
    if names is not None and drop.header.version >= _TOLD_BY_VERSION:
        return names.rpartition(" or ")[2]
    return names


def source_files(number: int) -> str | None:
    """Return the names of all source files that a number may mean; None if it is unknown."""
    return _SOURCE_FILES.get(number)


class TracePoint(IntEnum):
    """Observation points of traces (bpf/lib/trace.h, enum trace_point)."""

    TO_LXC = 0
    TO_PROXY = 1
    TO_HOST = 2
    TO_STACK = 3
    TO_OVERLAY = 4
    FROM_LXC = 5
    FROM_PROXY = 6
    FROM_HOST = 7
    FROM_STACK = 8
    FROM_OVERLAY = 9
    FROM_NETWORK = 10
    TO_NETWORK = 11


NOTIFY_DROP, NOTIFY_TRACE, NOTIFY_POLICY_VERDICT = 1, 4, 5
"""Types of messages in cilium_events (bpf/lib/events.h, enum notify_type)."""


_BODIES: Mapping[tuple[int, int], tuple[int, ...]] = {
    (NOTIFY_DROP, 1): (DROP_NOTIFY.size,),
    (NOTIFY_DROP, 2): (40,),  # the release of 1.18: flags
    (NOTIFY_DROP, 3): (48,),  # 1.19: flags, ip_trace_id
    (NOTIFY_TRACE, 1): (TRACE_NOTIFY.size,),
    (NOTIFY_TRACE, 2): (56,),  # 1.19: ip_trace_id
    (NOTIFY_POLICY_VERDICT, 1): (40, POLICY_VERDICT_NOTIFY.size),  # 1.19: cookie, and still version 1
}
"""Bytes of a message by its type and version, the largest first; those of 1.14 to 1.17 are as our own."""


def body_size(data: bytes) -> int | None:
    """Return the size of a message, which the packet follows, in bytes; None if it is cut off, or of no known version.

    Whoever has written the message, its first fields are those of the classes here.
    """
    if len(data) < NOTIFY_HEADER.size:
        return None
    head = NotifyHeader.unpack(data)
    sizes = _BODIES.get((head.type, head.version), ())
    return next((size for size in sizes if len(data) >= size + head.len_cap), _least(data, sizes))


def is_of_unknown_version(data: bytes) -> bool:
    """Tell whether a message has a version of which its size is not known."""
    if len(data) < NOTIFY_HEADER.size:
        return False
    head = NotifyHeader.unpack(data)
    return (head.type, head.version) not in _BODIES


def _least(data: bytes, sizes: tuple[int, ...]) -> int | None:
    """Return the smallest size for a message whose packet is cut off; None if it is cut off itself."""
    return sizes[-1] if sizes and len(data) >= sizes[-1] else None


@dataclass(frozen=True, slots=True)
class NotifyHeader:
    """Header of every message; `len_cap` bytes of the packet follow the message."""

    SIZE: ClassVar[int] = NOTIFY_HEADER.size

    type: int
    subtype: int
    source: int
    hash: int
    len_orig: int
    len_cap: int
    version: int = 1

    def pack(self) -> bytes:
        return NOTIFY_HEADER.pack(
            self.type, self.subtype, self.source, self.hash, self.len_orig, self.len_cap, self.version
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*NOTIFY_HEADER.unpack_from(data))


@dataclass(frozen=True, slots=True)
class DropNotify:
    """Notification of a dropped packet; the header's subtype is the drop reason."""

    SIZE: ClassVar[int] = DROP_NOTIFY.size

    header: NotifyHeader
    src_label: int
    dst_label: int
    dst_id: int
    line: int
    file: int
    ext_error: int
    ifindex: int

    def pack(self) -> bytes:
        labels = self.src_label, self.dst_label, self.dst_id
        return DROP_NOTIFY.pack(self.header.pack(), *labels, self.line, self.file, self.ext_error, self.ifindex)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        header, *rest = DROP_NOTIFY.unpack_from(data)
        return cls(NotifyHeader.unpack(header), *rest)


@dataclass(frozen=True, slots=True)
class TraceNotify:
    """Notification of a traced packet; the header's subtype is the TracePoint, `reason` the ConnState."""

    SIZE: ClassVar[int] = TRACE_NOTIFY.size

    header: NotifyHeader
    src_label: int
    dst_label: int
    dst_id: int
    reason: int
    ifindex: int

    def pack(self) -> bytes:
        labels = self.src_label, self.dst_label, self.dst_id
        return TRACE_NOTIFY.pack(self.header.pack(), *labels, self.reason, 0, self.ifindex, bytes(16))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        header, src_label, dst_label, dst_id, reason, _, ifindex, _ = TRACE_NOTIFY.unpack_from(data)
        return cls(NotifyHeader.unpack(header), src_label, dst_label, dst_id, reason, ifindex)


@dataclass(frozen=True, slots=True)
class PolicyVerdictNotify:
    """Notification of a policy verdict: `verdict` is 0 (allowed), a proxy port, or the negative drop reason."""

    SIZE: ClassVar[int] = POLICY_VERDICT_NOTIFY.size

    header: NotifyHeader
    remote_label: int
    verdict: int
    dst_port: int
    protocol: int
    dir: int
    ipv6: bool
    match_type: int

    def pack(self) -> bytes:
        bits = self.dir | self.ipv6 << 2 | self.match_type << 3
        head = self.header.pack()
        return POLICY_VERDICT_NOTIFY.pack(head, self.remote_label, self.verdict, self.dst_port, self.protocol, bits)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        header, remote, verdict, port, protocol, bits = POLICY_VERDICT_NOTIFY.unpack_from(data)
        head = NotifyHeader.unpack(header)
        return cls(head, remote, verdict, port, protocol, bits & 3, bool(bits >> 2 & 1), bits >> 3 & 7)

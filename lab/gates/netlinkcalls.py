"""Messages of rtnetlink in words: what is asked for, of which interface, hook or route."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Iterator

from datapath.kernel.netlink import attributes, text
from lab.gates.memory import Process

_SIOCGIFNAME = 0x8910
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("@PIxxxxPNPNi")  # struct msghdr
_STEP = 64  # struct mmsghdr: a struct msghdr, and a length
_IOV = struct.Struct("@PN")
_MOST = 1 << 16
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_HOOKS = {_INGRESS: "ingress", _EGRESS: "egress", 0xFFFFFFF1: "clsact"}
_DST, _OIF, _TABLE = 1, 4, 15  # enum rtattr_type_t
_IFNAME, _KIND = 3, 1
_RULE_PRIORITY = 6
_FIRST, _VERBS = 16, ("NEW", "DEL", "GET", "SET")  # RTM_BASE of linux/rtnetlink.h
_ABOUT = (
    *("LINK", "ADDR", "ROUTE", "NEIGH", "RULE", "QDISC", "TCLASS", "TFILTER", "ACTION", "PREFIX", "MULTICAST"),
    *("ANYCAST", "NEIGHTBL", "NDUSEROPT", "ADDRLABEL", "DCB", "NETCONF", "MDB", "NSID", "STATS", "CACHEREPORT"),
    *("CHAIN", "NEXTHOP", "LINKPROP", "VLAN", "NEXTHOPBUCKET", "TUNNEL"),
)

NAMES = frozenset(f"RTM_{verb}{about}" for verb in _VERBS for about in _ABOUT)
"""What the messages are called."""


def is_netlink(descriptor: int) -> bool:
    """Tell whether a descriptor of ours is a netlink socket."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as found:
        return found.family == socket.AF_NETLINK


def _name(descriptor: int, index: int) -> str:
    """Return the name of an interface in the namespace of a socket, or the index itself if there is none."""
    try:
        answer = fcntl.ioctl(descriptor, _SIOCGIFNAME, struct.pack("=16si20x", b"", index))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return str(index)
    return os.fsdecode(answer[:16].split(b"\0", 1)[0])


def sent(process: Process, name: str, args: tuple[int, ...]) -> bytes:
    """Return the bytes that a sendto(2), sendmsg(2) or sendmmsg(2) sends, at most 64 KiB."""
    if name == "sendto":
        return process.read(args[1], min(args[2], _MOST))
    count = 1 if name == "sendmsg" else min(args[2] & 0xFFFFFFFF, 64)
    return b"".join(_parts(process, args[1] + _STEP * number) for number in range(count))[:_MOST]


def _parts(process: Process, address: int) -> bytes:
    """Return what a struct msghdr points at."""
    _, _, vector, count, _, _, _ = _MESSAGE.unpack(process.read(address, _MESSAGE.size))
    parts = _IOV.iter_unpack(process.read(vector, _IOV.size * min(count, 64)))
    return b"".join(process.read(place, min(size, _MOST)) for place, size in parts if size)


def describe(data: bytes, descriptor: int) -> tuple[str, str]:
    """Return (name, subject) of what is sent: of the first message, then the others in full.

    `descriptor` is the socket, for the names of interfaces.
    """
    messages = list(_messages(data, descriptor))
    if not messages:
        return "netlink", f"{len(data)} bytes"
    (name, subject), *others = messages
    return name, " + ".join((subject, *(f"{other} {of}".rstrip() for other, of in others)))


def _messages(data: bytes, descriptor: int) -> Iterator[tuple[str, str]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        name = _name_of(kind)
        yield name, _subject(name, data[offset + _HEADER.size : offset + length], descriptor)
        offset += (length + 3) & ~3


def _name_of(kind: int) -> str:
    """Return the name of a message, such as RTM_NEWLINK: four for each of what they are about."""
    about, verb = divmod(kind - _FIRST, len(_VERBS))
    return f"RTM_{_VERBS[verb]}{_ABOUT[about]}" if 0 <= about < len(_ABOUT) else f"netlink-{kind}"


def _subject(name: str, body: bytes, descriptor: int) -> str:
    if name.endswith(("TFILTER", "QDISC")) and len(body) >= 20:
        _, index, _, parent = struct.unpack_from("=BxxxiII", body)
        return f"{_name(descriptor, index)} {_HOOKS.get(parent, hex(parent))}"
    if name.endswith("ROUTE") and len(body) >= 12:
        return _route(body, descriptor)
    if name.endswith("LINK") and len(body) >= 16:
        (index,) = struct.unpack_from("=i", body, 4)
        named = dict(attributes(body, 16)).get(_IFNAME)
        return text(named) if named is not None else _name(descriptor, index) if index else ""
    if name.endswith(("ADDR", "NEIGH")) and len(body) >= 8:
        (index,) = struct.unpack_from("=i", body, 4)
        return _name(descriptor, index) if index else ""
    return ""


def _route(body: bytes, descriptor: int) -> str:
    family, length, _, _, table = struct.unpack_from("=5B", body)
    given = dict(attributes(body, 12))
    if _TABLE in given:
        (table,) = struct.unpack_from("=I", given[_TABLE])
    to = f"{ipaddress.ip_address(bytes(given[_DST]))}/{length}" if _DST in given else f"default family {family}"
    device = f" dev {_name(descriptor, struct.unpack_from('=i', given[_OIF])[0])}" if _OIF in given else ""
    return f"{to}{device} table {table}"

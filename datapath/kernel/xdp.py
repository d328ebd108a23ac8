"""The XDP hook of an interface: what is attached, and attaching without a link, by netlink (IFLA_XDP).

A hook runs one program in one mode. While one is attached in the driver (native) the kernel takes none in the generic
hook, and the other way round (net/core/dev.c, dev_xdp_attach): whoever changes the mode leaves the interface without a
program for a moment. Links are in datapath/kernel/links.py; the kernel replaces no link's program by netlink, and no
program that was attached by netlink by a link.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from functools import cache

from datapath.base.bpftypes import XDP_HAS_FRAGS, ProgType
from datapath.errors import BpfError
from datapath.kernel import bpf, links
from datapath.kernel.links import LinkType
from datapath.kernel.netlink import (
    IFLA_IFNAME,
    RTM_GETLINK,
    NetlinkSocket,
    attributes,
    pack_attribute,
    pack_message,
    text,
)

RTM_SETLINK = 19
IFLA_XDP = 43
_NLA_F_NESTED = 1 << 15
_XDP_FD, _XDP_FLAGS, _XDP_EXPECTED_FD = 1, 3, 8
_UPDATE_IF_NOEXIST, _REPLACE = 1 << 0, 1 << 4
_NO_PROGRAM = -1
_XDP_PASS = 2


class Mode(IntFlag):
    """Where a program is attached, by the flag that asks for it (XDP_FLAGS_*).

    The kernel reports other numbers (XDP_ATTACHED_*); taken for these they name other modes (cilium issue 30132).
    """

    GENERIC = 1 << 1
    NATIVE = 1 << 2
    OFFLOADED = 1 << 3

    def __str__(self) -> str:
        return (self.name or "").lower()


# IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID, IFLA_XDP_HW_PROG_ID
_PROGRAM_IDS = {5: Mode.NATIVE, 6: Mode.GENERIC, 7: Mode.OFFLOADED}


@cache
def takes_frags() -> bool:
    """Tell whether the kernel has programs for frames in several pieces (Linux 5.18).

    Without them a driver takes native programs only where the MTU fits into a page. False as well for who may not ask.
    """
    pass_on = struct.pack("<BBhi", 0xB7, 0, 0, _XDP_PASS) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    found = bpf.prog_load(ProgType.XDP, pass_on, "GPL", name="probe", flags=XDP_HAS_FRAGS)
    if found >= 0:
        os.close(found)
    elif found not in (-errno.EINVAL, -errno.EPERM):
        raise BpfError("BPF_PROG_LOAD", -found, f"probe: {os.strerror(-found)}")
    return found >= 0


@dataclass(frozen=True, slots=True)
class Attached:
    """A program at an interface's XDP hook; `program_id` is the kernel's."""

    mode: Mode
    program_id: int


def attached(netlink: NetlinkSocket, ifindex: int) -> tuple[Attached, ...]:
    """Return what an interface runs at XDP; NetlinkError with ENODEV without the interface."""
    return _parse(netlink.get("look up XDP", pack_message(RTM_GETLINK, _ifinfomsg(ifindex))))


def all_attached(netlink: NetlinkSocket) -> dict[str, tuple[Attached, ...]]:
    """Return what the interfaces run at XDP, by name; those without a program are left out."""
    found = {}
    for answer in netlink.dump("list XDP programs", pack_message(RTM_GETLINK, bytes(16))):
        if programs := _parse(answer):
            found[text(dict(attributes(answer, 32))[IFLA_IFNAME])] = programs
    return found


def attach(netlink: NetlinkSocket, ifindex: int, mode: Mode, program_fd: int) -> None:
    """Attach a program by netlink; NetlinkError with EBUSY or EEXIST if there is one."""
    _set(netlink, f"attach to {mode} XDP", ifindex, program_fd, mode | _UPDATE_IF_NOEXIST)


def replace(netlink: NetlinkSocket, ifindex: int, mode: Mode, program_fd: int, *, expected_fd: int) -> None:
    """Let another program take the place of the expected one, without a packet between them; EEXIST if it is gone."""
    _set(netlink, f"replace at {mode} XDP", ifindex, program_fd, mode | _REPLACE, expected_fd)


def detach(netlink: NetlinkSocket, ifindex: int, mode: Mode, *, expected_fd: int) -> None:
    """Remove the expected program, which no link holds; NetlinkError with EEXIST if it is another one."""
    _set(netlink, f"detach from {mode} XDP", ifindex, _NO_PROGRAM, mode | _REPLACE, expected_fd)


def link_of(ifindex: int, program_id: int) -> int | None:
    """Open the link that holds a program at an interface's XDP hook; None if it was attached without one.

    Interfaces of other namespaces may have the same index, but not the same program.
    """
    ident = links.next_id(0)
    while ident is not None:
        try:
            fd = links.fd_by_id(ident)
        except BpfError as error:
            if error.errno not in (errno.ENOENT, errno.EAGAIN):  # gone, or not yet attached
                raise
        else:
            found = links.info(fd)
            if (found.type, found.ifindex, found.program_id) == (LinkType.XDP, ifindex, program_id):
                return fd
            os.close(fd)
        ident = links.next_id(ident)
    return None


def _parse(answer: bytes) -> tuple[Attached, ...]:
    nested = dict(attributes(answer, 32)).get(IFLA_XDP, memoryview(b""))
    said = ((number, int.from_bytes(value, "little")) for number, value in attributes(nested))
    return tuple(Attached(_PROGRAM_IDS[number], ident) for number, ident in said if number in _PROGRAM_IDS and ident)


def _set(
    netlink: NetlinkSocket, what: str, ifindex: int, program_fd: int, flags: int, expected_fd: int | None = None
) -> None:
    values = pack_attribute(_XDP_FD, struct.pack("=i", program_fd))
    values += pack_attribute(_XDP_FLAGS, struct.pack("=I", flags))
    if expected_fd is not None:
        values += pack_attribute(_XDP_EXPECTED_FD, struct.pack("=i", expected_fd))
    body = _ifinfomsg(ifindex) + pack_attribute(IFLA_XDP | _NLA_F_NESTED, values)
    netlink.request(what, pack_message(RTM_SETLINK, body))


def _ifinfomsg(ifindex: int) -> bytes:
    return struct.pack("=BxHiII", 0, 0, ifindex, 0, 0)

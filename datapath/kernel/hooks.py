"""The clsact hooks of an interface: list, attach and detach direct-action filters (pkg/datapath/loader/netlink.go).

Filters are attached at handle 1, ETH_P_ALL, a priority from the configuration, under the name `<program>-<interface>`.
Only filters whose name starts with `cil_` are ours; all others are left alone.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import Enum
from functools import cache

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from datapath.errors import NetlinkError, ReloadlabError
from datapath.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NetlinkSocket,
    Template,
    attributes,
    encode,
    text,
)

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
ETH_P_ALL, HANDLE = 0x0003, 1
OURS = "cil_"
"""Prefix of the programs that are ours (hasCiliumTCFilters)."""

_TC_H_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_NAME, _TCA_BPF_ID = 7, 11
_BPF_FLAG_ACT_DIRECT = 1
_NAME_LENGTH = 64  # the longest program name we take, `-`, an interface name and the final NUL
_TCMSG = struct.Struct("=BBHiIII")


class Direction(Enum):
    """A hook of clsact; the value is the parent handle of its filters (HANDLE_MIN_INGRESS, HANDLE_MIN_EGRESS)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Filter:
    """A BPF filter at a hook. `protocol` is in host order, `program_id` the kernel's id of the attached program."""

    ifindex: int
    direction: Direction
    priority: int
    protocol: int
    handle: int
    kind: str
    name: str
    program_id: int

    @property
    def is_ours(self) -> bool:
        return self.kind == "bpf" and self.name.startswith(OURS)


class HookTaken(ReloadlabError):
    """Somebody else's filter sits where ours would go; attaching would overwrite it (cilium issue 21345)."""

    def __init__(self, ifname: str, taken: Filter) -> None:
        super().__init__(
            f"{ifname} {taken.direction}: priority {taken.priority} handle {taken.handle:#x} is taken by "
            f"{taken.name or 'a ' + taken.kind + ' filter'}: choose another filter priority"
        )
        self.ifname = ifname
        self.filter = taken


class HookBlocked(ReloadlabError):
    """A qdisc of another kind sits where clsact would.

    The legacy `ingress` has no egress hook: the kernel takes an egress program for it, and puts it in the place of the
    ingress program.
    """

    def __init__(self, ifindex: int, kind: str) -> None:
        super().__init__(f"interface {ifindex} has the qdisc {kind} instead of clsact: remove it")
        self.ifindex = ifindex
        self.kind = kind


def filter_name(program: str, ifname: str) -> str:
    """Return the name under which Cilium attaches `program` to `ifname`."""
    return f"{program}-{ifname}"


def collides(found: Filter, priority: int) -> bool:
    """Tell whether a filter keeps ours from being attached at this priority.

    It has the same handle, or is of another kind or protocol: the kernel takes one kind and protocol for a priority.
    """
    same = (found.kind, found.protocol) == ("bpf", ETH_P_ALL)
    return found.priority == priority and (found.handle == HANDLE or not same)


def ensure_clsact(netlink: NetlinkSocket, ifindex: int) -> bool:
    """Give the interface a clsact qdisc; True if it had none, HookBlocked if one of another kind is in its place."""
    try:
        netlink.request("add qdisc clsact", _clsact_template().fill({"ifindex": struct.pack("=i", ifindex)}))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        # Without ECHO the kernel gives no answer to this question, other than to a dump.
        flags = NLM_F_REQUEST | NLM_F_ECHO
        message = struct.pack("=IHHII", 36, RTM_GETQDISC, flags, 0, 0) + _TCMSG.pack(
            0, 0, 0, ifindex, 0, _TC_H_CLSACT, 0
        )
        answer = netlink.get("look up qdisc clsact", message)
        kind = next((text(value) for number, value in attributes(answer, 36) if number == _TCA_KIND), "")
        if kind != "clsact":
            raise HookBlocked(ifindex, kind) from error
        return False
    return True


def remove_clsact(netlink: NetlinkSocket, ifindex: int) -> None:
    """Remove the clsact qdisc with everything attached to it; for a qdisc that `ensure_clsact` made."""
    message = encode(
        tcmsg,
        RTM_DELQDISC,
        0,
        {"family": 0, "index": ifindex, "handle": _CLSACT_HANDLE, "parent": _TC_H_CLSACT},
        [("TCA_KIND", "clsact")],
    )
    netlink.request("remove qdisc clsact", message)


def attach(
    netlink: NetlinkSocket,
    ifindex: int,
    direction: Direction,
    *,
    program_fd: int,
    name: str,
    priority: int,
    handle: int = HANDLE,
) -> None:
    """Replace the filter at (direction, priority, handle) in one step: no packet sees the hook empty."""
    message = attach_message(ifindex, direction, program_fd=program_fd, name=name, priority=priority, handle=handle)
    netlink.request(f"attach {name} {direction}", message)


def attach_message(
    ifindex: int, direction: Direction, *, program_fd: int, name: str, priority: int, handle: int = HANDLE
) -> bytes:
    """Return the request that `attach` makes."""
    return _filter_template().fill(
        {
            "ifindex": struct.pack("=i", ifindex),
            "parent": struct.pack("=I", direction.value),
            "info": struct.pack("=I", (priority or 1) << 16 | _swap(ETH_P_ALL)),
            "handle": struct.pack("=I", handle),
            "fd": struct.pack("=I", program_fd),
            "name": name.encode().ljust(_NAME_LENGTH, b"\0"),
        }
    )


def detach(netlink: NetlinkSocket, found: Filter) -> None:
    """Remove exactly this filter."""
    message = encode(
        tcmsg,
        RTM_DELTFILTER,
        0,
        {
            "family": 0,
            "index": found.ifindex,
            "handle": found.handle,
            "parent": found.direction.value,
            "info": found.priority << 16 | _swap(found.protocol),
        },
        [("TCA_KIND", found.kind)],
    )
    netlink.request(f"detach {found.name} {found.direction}", message)


def filters(netlink: NetlinkSocket, ifindex: int, direction: Direction) -> tuple[Filter, ...]:
    """Return the filters at one hook in the order in which the kernel runs them, foreign ones included."""
    message = struct.pack("=IHHII", 36, RTM_GETTFILTER, 1, 0, 0) + _TCMSG.pack(0, 0, 0, ifindex, 0, direction.value, 0)
    try:
        answers = netlink.dump(f"list filters {direction}", message)
    except NetlinkError as error:
        # Without a qdisc there is nothing to list; the kernel says so in two ways.
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return ()
        raise
    # The dump also has one line per priority, without a handle.
    found = [_parse(answer) for answer in answers if _TCMSG.unpack_from(answer, 16)[4]]
    return tuple([f for f in found if f.direction is direction])


def _parse(message: bytes) -> Filter:
    _, _, _, ifindex, handle, parent, info = _TCMSG.unpack_from(message, 16)
    kind, name, program_id = "", "", 0
    for number, payload in attributes(message, 36):
        if number == _TCA_KIND:
            kind = text(payload)
        elif number == _TCA_OPTIONS and kind == "bpf":
            for option, value in attributes(payload):
                if option == _TCA_BPF_NAME:
                    name = text(value)
                elif option == _TCA_BPF_ID:
                    program_id = int.from_bytes(value, "little")
    return Filter(ifindex, Direction(parent), info >> 16, _swap(info & 0xFFFF), handle, kind, name, program_id)


def _swap(protocol: int) -> int:
    return (protocol & 0xFF) << 8 | protocol >> 8


@cache
def _clsact_template() -> Template:
    marker = 0x7A7A0001
    message = encode(
        tcmsg,
        RTM_NEWQDISC,
        NLM_F_CREATE | NLM_F_EXCL,
        {"family": 0, "index": marker, "handle": _CLSACT_HANDLE, "parent": _TC_H_CLSACT},
        [("TCA_KIND", "clsact")],
    )
    return Template(message, {"ifindex": struct.pack("=I", marker)})


@cache
def _filter_template() -> Template:
    ifindex, parent, info, handle, fd = 0x7A7A0001, 0x7A7A0002, 0x7A7A0003, 0x7A7A0004, 0x7A7A0005
    name = "z" * (_NAME_LENGTH - 1)
    options = [("TCA_BPF_FD", fd), ("TCA_BPF_NAME", name), ("TCA_BPF_FLAGS", _BPF_FLAG_ACT_DIRECT)]
    message = encode(
        tcmsg,
        RTM_NEWTFILTER,
        NLM_F_CREATE,
        {"family": 0, "index": ifindex, "handle": handle, "parent": parent, "info": info},
        [("TCA_KIND", "bpf"), ("TCA_OPTIONS", {"attrs": options})],
    )
    holes = {"ifindex": ifindex, "parent": parent, "info": info, "handle": handle, "fd": fd}
    return Template(
        message,
        {key: struct.pack("=I", value) for key, value in holes.items()} | {"name": name.encode() + b"\0"},
    )

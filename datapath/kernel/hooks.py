"""The clsact hooks of an interface: list, attach and detach direct-action filters (pkg/datapath/loader/netlink.go).

Filters are attached at handle 1, ETH_P_ALL, a priority from the configuration, under the name `<program>-<interface>`.
Only filters whose name starts with `cil_` are ours; all others are left alone. The loader attaches to chain 0 of an
interface's own block: other chains, and blocks that interfaces share, are somebody else's as a whole.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import Enum
from functools import cache

from datapath.errors import NetlinkError, ReloadlabError, printable
from datapath.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_EXCL,
    MessageTemplate,
    NetlinkSocket,
    attributes,
    pack_attribute,
    pack_message,
    text,
)

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
ETH_P_ALL, HANDLE = 0x0003, 1
OURS = "cil_"
"""Prefix of the programs that are ours (hasCiliumTCFilters)."""

TCX, NETKIT = "tcx", "netkit"
"""The kinds of programs at hooks that take links, where they are listed among the filters."""
LINKED = (TCX, NETKIT)

_TC_H_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_TCA_KIND, _TCA_OPTIONS, _TCA_CHAIN, _TCA_INGRESS_BLOCK, _TCA_EGRESS_BLOCK = 1, 2, 11, 13, 14
_IN_A_BLOCK = -1  # the interface of a filter in a shared block (TCM_IFINDEX_MAGIC_BLOCK)
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 6, 7, 8, 11
_BPF_FLAG_ACT_DIRECT = 1
_NAME_LENGTH = 64  # a program name of ours, `-`, an interface name and the final NUL
_LONGEST_NAME = 257  # what the kernel takes, and a NUL (CLS_BPF_NAME_LEN)
_TCMSG = struct.Struct("=BBHiIII")


class Direction(Enum):
    """A hook of clsact; the value is the parent handle of its filters (HANDLE_MIN_INGRESS, HANDLE_MIN_EGRESS)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter at a hook. `protocol` is in host order, `program_id` the kernel's id of the attached program.

    `block` is the number of the shared block that it belongs to, 0 for the interface's own.
    """

    ifindex: int
    direction: Direction
    priority: int
    protocol: int
    handle: int
    kind: str
    name: str
    program_id: int
    chain: int = 0
    block: int = 0

    @property
    def is_local(self) -> bool:
        """Whether it is in chain 0 of the interface's own block, where the loader attaches."""
        return not (self.chain or self.block)

    @property
    def is_ours(self) -> bool:
        return self.is_local and self.kind in ("bpf", *LINKED) and self.name.startswith(OURS)

    def __str__(self) -> str:
        """Return its name, or kind, and where it is if that is elsewhere; printable, whatever bytes the name has."""
        where = [self.kind] if self.kind in LINKED and self.name else []
        where += [f"{word} {number}" for word, number in (("block", self.block), ("chain", self.chain)) if number]
        said = printable(self.name) or self.kind
        return said + (f" ({', '.join(where)})" if where else "")


@dataclass(frozen=True, slots=True)
class Qdisc:
    """What is in the place of an interface's clsact; `blocks` are the shared ones by direction, 0 for its own."""

    kind: str
    blocks: dict[Direction, int]


class HookTaken(ReloadlabError):
    """Somebody else's filter sits where ours would go; attaching would overwrite it (cilium issue 21345)."""

    def __init__(self, ifname: str, taken: Filter) -> None:
        super().__init__(
            f"{ifname} {taken.direction}: priority {taken.priority} handle {taken.handle:#x} is taken by "
            f"{taken if taken.name else f'a {taken.kind} filter'}: choose another filter priority"
        )
        self.ifname = ifname
        self.filter = taken


class HookEmptied(ReloadlabError):
    """A hook that does not run the program any more that was attached to it."""

    def __init__(self, ifname: str, direction: str, program: str) -> None:
        super().__init__(
            f"{printable(ifname)} {direction}: {program} is not attached any more: "
            f"somebody else has removed it during the reload"
        )
        self.ifname = ifname
        self.direction = direction
        self.program = program


class HookBlocked(ReloadlabError):
    """A qdisc of another kind sits where clsact would.

    The legacy `ingress` has no egress hook: the kernel takes an egress program for it, and puts it in the place of the
    ingress program.
    """

    def __init__(self, ifindex: int, kind: str) -> None:
        super().__init__(f"interface {ifindex} has the qdisc {kind} instead of clsact: remove it")
        self.ifindex = ifindex
        self.kind = kind


class HookShared(ReloadlabError):
    """A hook with the filters of a block that interfaces share: the kernel takes none for one interface alone."""

    def __init__(self, ifname: str, direction: Direction, block: int) -> None:
        super().__init__(
            f"{ifname} {direction} has the shared filter block {block}: "
            f"give it a clsact qdisc without {direction}_block"
        )
        self.ifname = ifname
        self.direction = direction
        self.block = block


def filter_name(program: str, ifname: str) -> str:
    """Return the name under which Cilium attaches `program` to `ifname`."""
    return f"{program}-{ifname}"


def collides(found: Filter, priority: int) -> bool:
    """Tell whether a filter keeps ours from being attached at this priority.

    It has the same handle, or is of another kind or protocol: the kernel takes one kind and protocol for a priority.
    """
    same = (found.kind, found.protocol) == ("bpf", ETH_P_ALL)
    return found.is_local and found.priority == priority and (found.handle == HANDLE or not same)


def ensure_clsact(netlink: NetlinkSocket, ifindex: int) -> bool:
    """Give the interface a clsact qdisc; True if it had none, HookBlocked if one of another kind is in its place."""
    try:
        netlink.request("add qdisc clsact", _clsact_template().fill({"ifindex": struct.pack("=i", ifindex)}))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        found = qdisc(netlink, ifindex)
        if found is not None and found.kind != "clsact":
            raise HookBlocked(ifindex, found.kind) from error
        return False
    return True


def qdisc(netlink: NetlinkSocket, ifindex: int) -> Qdisc | None:
    """Return the qdisc to which an interface's hooks belong, None if it has none."""
    # Without ECHO the kernel gives no answer to this question, other than to a dump.
    wanted = pack_message(RTM_GETQDISC, _TCMSG.pack(0, 0, 0, ifindex, 0, _TC_H_CLSACT, 0), NLM_F_ECHO)
    try:
        answer = netlink.find("look up qdisc clsact", wanted)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    if answer is None:  # it had one once
        return None
    values = dict(attributes(answer, 36))
    blocks = {Direction.INGRESS: _TCA_INGRESS_BLOCK, Direction.EGRESS: _TCA_EGRESS_BLOCK}
    numbers = {key: int.from_bytes(values.get(number, b""), "little") for key, number in blocks.items()}
    return Qdisc(text(values[_TCA_KIND]), numbers)


def attach(
    netlink: NetlinkSocket,
    ifindex: int,
    direction: Direction,
    *,
    program_fd: int,
    name: str,
    priority: int,
    handle: int = HANDLE,
    exclusive: bool = False,
) -> None:
    """Replace the filter at (direction, priority, handle) in one step: no packet sees the hook empty.

    An `exclusive` one takes nobody's place: NetlinkError with EEXIST if there is a filter.
    """
    message = attach_message(
        *(ifindex, direction),
        program_fd=program_fd,
        name=name,
        priority=priority,
        handle=handle,
        exclusive=exclusive,
    )
    netlink.request(f"attach {printable(name)} {direction}", message)


def attach_message(
    ifindex: int,
    direction: Direction,
    *,
    program_fd: int,
    name: str,
    priority: int,
    handle: int = HANDLE,
    exclusive: bool = False,
) -> bytes:
    """Return the request that `attach` makes."""
    name_bytes = os.fsencode(name)
    room = _NAME_LENGTH if len(name_bytes) < _NAME_LENGTH else _LONGEST_NAME
    return _filter_template(room, NLM_F_CREATE | (NLM_F_EXCL if exclusive else 0)).fill(
        {
            "ifindex": struct.pack("=i", ifindex),
            "parent": struct.pack("=I", direction.value),
            "info": struct.pack("=I", (priority or 1) << 16 | _swap(ETH_P_ALL)),
            "handle": struct.pack("=I", handle),
            "fd": struct.pack("=I", program_fd),
            "name": name_bytes.ljust(room, b"\0"),
        }
    )


def detach(netlink: NetlinkSocket, found: Filter) -> None:
    """Remove exactly this filter."""
    info = found.priority << 16 | _swap(found.protocol)
    body = _TCMSG.pack(0, 0, 0, found.ifindex, found.handle, found.direction.value, info)
    message = pack_message(RTM_DELTFILTER, body + _kind(found.kind))
    netlink.request(f"detach {found} {found.direction}", message)


def filters(netlink: NetlinkSocket, ifindex: int, direction: Direction) -> tuple[Filter, ...]:
    """Return the filters of chain 0 of the interface's own block, foreign ones too, in the order in which they run."""
    return tuple([found for found in all_filters(netlink, ifindex, direction) if found.is_local])


def all_filters(netlink: NetlinkSocket, ifindex: int, direction: Direction) -> tuple[Filter, ...]:
    """Return the filters at one hook, those of other chains and of a shared block included."""
    wanted = pack_message(RTM_GETTFILTER, _TCMSG.pack(0, 0, 0, ifindex, 0, direction.value, 0))
    try:
        answers = netlink.dump(f"list filters {direction}", wanted)
    except NetlinkError as error:
        # Without a qdisc there is nothing to list; the kernel says so in two ways.
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return ()
        raise
    # The dump also has one line per priority, without a handle.
    found = (_parse(answer, ifindex, direction) for answer in answers if _TCMSG.unpack_from(answer, 16)[4])
    return tuple([item for item in found if item is not None])


def _parse(message: bytes, asked: int, direction: Direction) -> Filter | None:
    """Return a filter of the hook that was asked for, None for one of another hook."""
    _, _, _, ifindex, handle, parent, info = _TCMSG.unpack_from(message, 16)
    # A filter of a shared block names its block instead of interface and hook.
    block = parent if ifindex == _IN_A_BLOCK else 0
    if not block and parent != direction.value:
        return None
    kind, name, program_id, chain = "", "", 0, 0
    for number, payload in attributes(message, 36):
        if number == _TCA_KIND:
            kind = text(payload)
        elif number == _TCA_CHAIN:
            chain = int.from_bytes(payload, "little")
        elif number == _TCA_OPTIONS and kind == "bpf":
            for option, value in attributes(payload):
                if option == _TCA_BPF_NAME:
                    name = text(value)
                elif option == _TCA_BPF_ID:
                    program_id = int.from_bytes(value, "little")
    place = (asked, direction, info >> 16, _swap(info & 0xFFFF), handle)
    return Filter(*place, kind, name, program_id, chain=chain, block=block)


def notified(message: bytes) -> Filter | None:
    """Return the filter of RTM_NEWTFILTER or RTM_DELTFILTER as the kernel tells it to who listens, with its header.

    None if it is at no hook. With handle 0, all filters of the priority are meant; with priority 0, all of the hook.
    """
    _, _, _, ifindex, _, parent, _ = _TCMSG.unpack_from(message, 16)
    directions = {direction.value: direction for direction in Direction}
    return _parse(message, ifindex, directions[parent]) if parent in directions else None


def qdisc_of_hooks(message: bytes) -> int | None:
    """Return the interface whose hooks the qdisc of a message makes up, None if it is another kind of qdisc."""
    _, _, _, ifindex, _, parent, _ = _TCMSG.unpack_from(message, 16)
    return int(ifindex) if parent == _TC_H_CLSACT else None


def _swap(protocol: int) -> int:
    return (protocol & 0xFF) << 8 | protocol >> 8


def _kind(name: str) -> bytes:
    return pack_attribute(_TCA_KIND, name.encode() + b"\0")


@cache
def _clsact_template() -> MessageTemplate:
    marker = 0x7A7A0001
    body = _TCMSG.pack(0, 0, 0, marker, _CLSACT_HANDLE, _TC_H_CLSACT, 0) + _kind("clsact")
    message = pack_message(RTM_NEWQDISC, body, NLM_F_CREATE | NLM_F_EXCL)
    return MessageTemplate(message, {"ifindex": struct.pack("=I", marker)})


@cache
def _filter_template(room: int, flags: int) -> MessageTemplate:
    ifindex, parent, info, handle, fd = 0x7A7A0001, 0x7A7A0002, 0x7A7A0003, 0x7A7A0004, 0x7A7A0005
    name = b"z" * (room - 1) + b"\0"
    options = (
        pack_attribute(_TCA_BPF_FD, struct.pack("=I", fd)),
        pack_attribute(_TCA_BPF_NAME, name),
        pack_attribute(_TCA_BPF_FLAGS, struct.pack("=I", _BPF_FLAG_ACT_DIRECT)),
    )
    body = _TCMSG.pack(0, 0, 0, ifindex, handle, parent, info) + _kind("bpf")
    message = pack_message(RTM_NEWTFILTER, body + pack_attribute(_TCA_OPTIONS, b"".join(options)), flags)
    holes = {"ifindex": ifindex, "parent": parent, "info": info, "handle": handle, "fd": fd}
    return MessageTemplate(
        message,
        {key: struct.pack("=I", value) for key, value in holes.items()} | {"name": name},
    )

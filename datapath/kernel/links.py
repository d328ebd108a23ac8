"""BPF links: a program attached to a hook of an interface, for as long as a descriptor or a pin holds the link.

Interfaces are those of the calling thread's network namespace (datapath/kernel/netns.py enters another one). A link
outlives its interface: it then says interface 0, and takes no other program (ENOLINK). `bpf.obj_pin` and `bpf.obj_get`
pin a link and open a pinned one. A link that loses its last descriptor or pin goes, but not at once: the kernel frees
the file of a pin later (an RCU grace period). Who must see the hook without it calls `detach`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from datapath.errors import BpfError, ReloadlabError
from datapath.kernel import bpf, uapi
from datapath.kernel.uapi import Cmd

_BPF_F_REPLACE = 4
_NAMES = ("anon_inode:bpf-link", "anon_inode:bpf_link")  # of a link's descriptor: which one depends on the kernel
_LONGEST_HOOK = 64  # programs at one hook (BPF_MPROG_MAX)


class AttachType(IntEnum):
    """enum bpf_attach_type: the hooks of an interface that take links."""

    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47
    NETKIT_PRIMARY = 54
    NETKIT_PEER = 55


class LinkType(IntEnum):
    """enum bpf_link_type: the kinds of links that belong to an interface."""

    XDP = 6
    TCX = 11
    NETKIT = 13


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """struct bpf_link_info. `type` stays an int: the machine has links of kinds that we do not know.

    `ifindex` is None for a link of a kind that belongs to no interface, 0 if the interface is gone. `attach_type` is
    None for kinds that do not tell.
    """

    id: int
    type: int
    program_id: int
    ifindex: int | None
    attach_type: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One program at a hook; `link_id` is 0 if no link holds it there (BPF_PROG_ATTACH)."""

    program_id: int
    link_id: int


class NotALink(ReloadlabError):
    """A pin at the place of a link's that holds something else."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is no BPF link: remove it")
        self.path = path


def create(program_fd: int, ifindex: int, attach_type: AttachType, *, flags: int = 0) -> int:
    """Attach a program by a new link, behind those that a tcx hook has already; return the link's descriptor.

    `flags` are XDP_FLAGS_* for XDP, BPF_F_* for tcx. ENODEV without the interface; EINVAL if the kernel has no such
    hook (tcx: Linux 6.6, netkit: 6.7, XDP: 5.9); EEXIST if a tcx hook has the program already; for XDP EBUSY if a
    program is attached without a link, or by another one.
    """
    attr = uapi.LINK_CREATE.pack(program_fd, ifindex, attach_type, flags)
    return bpf.call(Cmd.LINK_CREATE, attr, f"{attach_type.name} of interface {ifindex}")


def update(link_fd: int, program_fd: int, *, old_program_fd: int | None = None) -> None:
    """Let a link run another program from the next packet on: no packet meets the hook empty.

    ENOLINK if the interface is gone; EEXIST if a tcx hook has the program already; EPERM if `old_program_fd` is given
    and the link runs another program.
    """
    flags, old = (0, 0) if old_program_fd is None else (_BPF_F_REPLACE, old_program_fd)
    bpf.call(Cmd.LINK_UPDATE, uapi.LINK_UPDATE.pack(link_fd, program_fd, flags, old))


def detach(link_fd: int) -> None:
    """Take the program of a link from its hook, whoever else holds the link."""
    bpf.call(Cmd.LINK_DETACH, uapi.LINK_DETACH.pack(link_fd))


def info(link_fd: int) -> LinkInfo:
    """Describe a link (bpf_link_get_info_by_fd). The descriptor must be a link's: the kernel tells of others too."""
    buffer = ctypes.create_string_buffer(uapi.LINK_INFO.size)
    bpf.call(Cmd.OBJ_GET_INFO_BY_FD, uapi.INFO.pack(link_fd, len(buffer), ctypes.addressof(buffer)))
    kind, ident, program, ifindex, attach_type = uapi.LINK_INFO.unpack(buffer.raw)
    of_an_interface, tells = kind in set(LinkType), kind in (LinkType.TCX, LinkType.NETKIT)
    return LinkInfo(ident, kind, program, ifindex if of_an_interface else None, attach_type if tells else None)


def fd_by_id(ident: int) -> int:
    """Open a link by id; ENOENT if there is none, EAGAIN if the call that makes it has not yet attached it."""
    return bpf.call(Cmd.LINK_GET_FD_BY_ID, uapi.ID.pack(ident, 0, 0), f"link {ident}")


def info_by_id(ident: int) -> LinkInfo:
    """Describe a link of the machine; the errors are those of `fd_by_id`."""
    fd = fd_by_id(ident)
    try:
        return info(fd)
    finally:
        os.close(fd)


def next_id(ident: int) -> int | None:
    """Return the next id of a link after `ident` (0 to begin), None after the last."""
    return bpf.next_id(Cmd.LINK_GET_NEXT_ID, ident)


@contextmanager
def pinned(path: Path) -> Iterator[int | None]:
    """Open a pinned link for the time of a block, as `open_pin` does."""
    fd = open_pin(path)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def open_pin(path: Path) -> int | None:
    """Open a pinned link; None if nothing is pinned there, NotALink if it is something else."""
    try:
        fd = bpf.obj_get(path)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    try:
        if os.readlink(f"/proc/self/fd/{fd}") not in _NAMES:
            raise NotALink(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def query(ifindex: int, attach_type: AttachType) -> tuple[Entry, ...]:
    """Return what a hook of tcx or netkit runs, in this order.

    EINVAL if the kernel has no such hook, ENODEV without the interface; for netkit ENXIO if the interface is of another
    kind, EACCES if it is the peer.
    """
    programs, links = (ctypes.c_uint32 * _LONGEST_HOOK)(), (ctypes.c_uint32 * _LONGEST_HOOK)()
    asked = (ifindex, attach_type, 0, 0, ctypes.addressof(programs), _LONGEST_HOOK, 0, ctypes.addressof(links), 0, 0)
    attr = ctypes.create_string_buffer(uapi.QUERY.pack(*asked), uapi.QUERY.size)
    try:
        bpf.call(Cmd.PROG_QUERY, attr, f"{attach_type.name} of interface {ifindex}")
    except BpfError as error:
        if error.errno != errno.ENOENT:  # the hook never had a program
            raise
        return ()
    count = uapi.QUERY.unpack(attr.raw)[5]
    return tuple(Entry(program, link) for program, link in zip(programs[:count], links[:count], strict=True))

"""What processes hold open: maps, and, of this process, netlink sockets and descriptors of a node's namespaces."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.node.node import Node
from lab.node.registry import NAMESPACES
from lab.system.netns import inode

_SIOCGSKNS = 0x894C
_SO_DOMAIN = 39
_PROC = Path("/proc")
_SELF = _PROC / "self"
_MAP = "anon_inode:bpf-map"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Open descriptors of this process: `maps` by the map's id, `netlink` and `namespaces` of one node."""

    maps: Mapping[int, int]
    netlink: int
    namespaces: int


def own_descriptors(node: Node, *, idle_sockets: int = 0) -> Descriptors:
    """Read what this process holds open; maps are those of the whole machine, all else is the node's.

    `idle_sockets` are netlink sockets that the loader keeps: they do not count.
    """
    own = {inode(node.netns(name)) for name in node.namespaces}
    bound = f"{node.root / NAMESPACES}/"
    maps: Counter[int] = Counter()
    netlink = namespaces = 0
    for descriptor, target in _open(_SELF):
        if target == _MAP:
            maps.update(_map_ids(_SELF, descriptor))
        elif target.startswith("net:["):
            namespaces += int(target[5:-1]) in own
        elif target.startswith(bound):
            namespaces += 1
        elif target.startswith("socket:"):
            netlink += _netlink_namespace(descriptor) in own
    return Descriptors(dict(maps), netlink - idle_sockets, namespaces)


def held_maps() -> frozenset[int]:
    """Return the ids of the maps that any process holds open, of those that this one may look at.

    A descriptor that is under way in a socket's message is not seen.
    """
    processes = (_PROC / name for name in os.listdir(_PROC) if name.isdigit())
    return frozenset(
        ident
        for process in processes
        for descriptor, target in _open(process)
        if target == _MAP
        for ident in _map_ids(process, descriptor)
    )


def _open(process: Path) -> Iterator[tuple[int, str]]:
    """Yield the descriptors of a process and what they are; none of one that has ended, or is another user's."""
    try:
        names = os.listdir(process / "fd")
    except OSError as error:
        _refuse_others(error)
        return
    for name in names:
        try:
            yield int(name), os.readlink(process / "fd" / name)
        except OSError as error:  # also the descriptor of the listing itself
            _refuse_others(error)


def _map_ids(process: Path, descriptor: int) -> Iterator[int]:
    """Yield the id of the map that a descriptor was when it was listed; nothing if it is closed, or another thing."""
    try:
        text = (process / "fdinfo" / str(descriptor)).read_text()
    except OSError as error:
        _refuse_others(error)
        return
    if (ident := dict(line.split(":", 1) for line in text.splitlines()).get("map_id")) is not None:
        yield int(ident)


def _refuse_others(error: OSError) -> None:
    """Raise an error that says anything but that a process or its descriptor is gone, or is not to be looked at."""
    if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM):
        raise error


def _netlink_namespace(descriptor: int) -> int | None:
    """Return the namespace of a netlink socket, None of any other or if another thread has closed it."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as found:
            if found.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN) != socket.AF_NETLINK:
                return None
            namespace = fcntl.ioctl(found.fileno(), _SIOCGSKNS)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOTSOCK):
            raise
        return None
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)

"""What this process holds open of a node: maps, netlink sockets in its namespace, descriptors of its namespaces."""

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
_FDS = Path("/proc/self/fd")


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
    for descriptor, target in _open():
        if target == "anon_inode:bpf-map":
            maps[_map_id(descriptor)] += 1
        elif target.startswith("net:["):
            namespaces += int(target[5:-1]) in own
        elif target.startswith(bound):
            namespaces += 1
        elif target.startswith("socket:"):
            netlink += _netlink_namespace(descriptor) in own
    return Descriptors(dict(maps), netlink - idle_sockets, namespaces)


def _open() -> Iterator[tuple[int, str]]:
    for name in os.listdir(_FDS):
        try:
            yield int(name), os.readlink(_FDS / name)
        except FileNotFoundError:  # the descriptor of the listing itself, or one that another thread has closed
            continue


def _map_id(descriptor: int) -> int:
    said = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
    return int(said["map_id"])


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

"""Pairs of netkit devices, which run programs themselves (Linux 6.7): the node's end of a pair is the primary one.

A program at the primary device sees what goes into the pod; one at its peer, which is managed from the primary device
too, sees what comes out. Both are attached by links, and form lists as those of tcx do.
"""

from __future__ import annotations

import errno
from functools import cache

from datapath.errors import BpfError, ReloadlabError
from datapath.kernel import links
from datapath.kernel.hooks import Direction
from datapath.kernel.links import AttachType

TYPES = {Direction.INGRESS: AttachType.NETKIT_PEER, Direction.EGRESS: AttachType.NETKIT_PRIMARY}
"""The hooks of a primary device, by the direction as the node sees it."""

HOOKS = frozenset(TYPES.values())
"""The same, of either direction."""

_LOOPBACK = 1


class NetkitMissing(ReloadlabError):
    """A kernel without netkit devices, of which they were demanded."""

    def __init__(self) -> None:
        super().__init__("the kernel has no netkit devices (Linux 6.7, CONFIG_NETKIT): do with datapath mode veth")


@cache
def is_supported() -> bool:
    """Tell whether the kernel has netkit devices."""
    return _query(_LOOPBACK) != errno.EINVAL


def require() -> None:
    """Raise NetkitMissing if the kernel has no netkit devices."""
    if not is_supported():
        raise NetkitMissing


def is_primary(ifindex: int) -> bool:
    """Tell whether an interface of the calling thread's namespace is the primary one of a netkit pair.

    BpfError with ENODEV if there is no such interface and the kernel has netkit devices.
    """
    return is_supported() and _query(ifindex) == 0


def _query(ifindex: int) -> int:
    """Return the error of a look at the programs of a primary device.

    0 if it is one, ENXIO if it is of another kind, EACCES if it is the peer, EINVAL if the kernel knows no netkit.
    """
    try:
        links.query(ifindex, AttachType.NETKIT_PRIMARY)
    except BpfError as error:
        if error.errno not in (errno.ENXIO, errno.EACCES, errno.EINVAL):
            raise
        return error.errno
    return 0

"""The tcx hooks of an interface: programs in a list, which a packet meets before the filters of clsact (Linux 6.6).

The list ends with the first program that returns another verdict than TCX_NEXT; the filters then see nothing of the
packet. So a program of ours at a tcx hook and one at clsact never both handle a packet. The node's end of a netkit pair
has hooks of its own, with the same lists (datapath/kernel/netkit.py): of such an interface, those are meant here.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datapath.endpoint import Attachment
from datapath.errors import BpfError, ReloadlabError
from datapath.kernel import bpf, links, netkit
from datapath.kernel.hooks import NETKIT, OURS, TCX, Direction
from datapath.kernel.inventory import program_by_id
from datapath.kernel.links import AttachType, Entry
from datapath.kernel.netns import enter

_TYPES = {Direction.INGRESS: AttachType.TCX_INGRESS, Direction.EGRESS: AttachType.TCX_EGRESS}

_LOOPBACK = 1


class TcxMissing(ReloadlabError):
    """A kernel without tcx, of which it was demanded."""

    def __init__(self) -> None:
        super().__init__("the kernel has no tcx (Linux 6.6, CONFIG_NET_XGRESS): attach by tc, or auto")


@dataclass(frozen=True, slots=True)
class TcxProgram:
    """A program at a hook of tcx or netkit, as `kind` says. `name` is the kernel's, of at most 15 characters."""

    entry: Entry
    name: str
    kind: str = TCX

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    def __str__(self) -> str:
        return f"{self.name or 'without a name'} (id {self.entry.program_id})"


@cache
def is_supported() -> bool:
    """Tell whether the kernel has tcx hooks."""
    try:
        links.query(_LOOPBACK, AttachType.TCX_INGRESS)
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def chosen(wanted: Attachment) -> Attachment:
    """Return tc or tcx: what is wanted, `auto` by what the kernel has. TcxMissing if it lacks what is wanted."""
    if wanted is Attachment.AUTO:
        return Attachment.TCX if is_supported() else Attachment.TC
    if wanted is Attachment.TCX and not is_supported():
        raise TcxMissing
    return wanted


def attach_type(ifindex: int, direction: Direction) -> AttachType:
    """Return the hook of an interface of the calling thread's namespace: netkit's if that is its kind, else tcx's."""
    return (netkit.TYPES if netkit.is_primary(ifindex) else _TYPES)[direction]


def programs(netns: Path, ifindex: int, direction: Direction) -> tuple[TcxProgram, ...]:
    """Return what a hook runs, ours and others', in this order; nothing on a kernel without tcx.

    BpfError with ENODEV without the interface.
    """
    return look(netns, ifindex, direction)[1] if is_supported() else ()


def look(netns: Path, ifindex: int, direction: Direction) -> tuple[AttachType, tuple[TcxProgram, ...]]:
    """Return which hook an interface has, and what `programs` does."""
    with enter(netns):
        hook = attach_type(ifindex, direction)
        if not is_supported():
            return hook, ()
        kind = NETKIT if hook in netkit.HOOKS else TCX
        while True:
            try:
                return hook, tuple(TcxProgram(entry, _name(entry), kind) for entry in links.query(ifindex, hook))
            except BpfError as error:
                if error.errno != errno.ENOENT:  # a program that was replaced between the two calls
                    raise


def programs_if_there(netns: Path, ifindex: int, direction: Direction) -> tuple[TcxProgram, ...]:
    """Return what `programs` does; nothing if the interface is gone."""
    try:
        return programs(netns, ifindex, direction)
    except BpfError as error:
        if error.errno != errno.ENODEV:
            raise
        return ()


def runs_before(ifname: str, direction: Direction, foreign: TcxProgram, program: str) -> str:
    """Return the words for somebody else's program that a packet meets before ours."""
    what = f"{ifname} {direction}: {foreign.kind} program {foreign}"
    return f"{what} runs before {program}, which sees only what that passes on"


def _name(entry: Entry) -> str:
    with program_by_id(entry.program_id) as fd:
        return bpf.prog_info(fd).name

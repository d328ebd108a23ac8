"""Makes the kernel ask for its neighbours again and again: ARP and neighbour discovery go through every reload.

A neighbour that was found is not asked for again for minutes. Here one entry at a time loses its state, in one
namespace after the other; the next packet waits until the neighbour has answered. If it does not, packets are late or
lost. The entry is not deleted: who has just looked it up, to send, would find it dead, and the kernel would drop the
packet (NEIGH_DEAD).

It is done in a thread of its own: the kernel changes an entry under RTNL, a lock of the whole machine, and whoever
makes or removes interfaces in any namespace has it for tens of milliseconds. Who sends packets must not wait for it.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread

from datapath.errors import NetlinkError
from datapath.kernel.netlink import NLM_F_REPLACE, NetlinkSocket, attributes, pack_attribute, pack_message

_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_NDA_DST = 1
_HEADER = 16
"""Bytes of struct nlmsghdr, with which an answer begins."""
_NDMSG = struct.Struct("=BxxxiHBB")
"""Family, interface, state, flags and type of struct ndmsg (uapi/linux/neighbour.h)."""

_NUD_NONE = 0
_FOUND = 0x02 | 0x04 | 0x08 | 0x10
"""NUD_REACHABLE, NUD_STALE, NUD_DELAY and NUD_PROBE: neither what is configured (permanent) nor what is asked for."""


class Neighbours:
    """The neighbours in some namespaces."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._sockets: list[NetlinkSocket] = []
        self._turn = 0
        self._enough = Event()
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def open(self, namespaces: Iterable[str]) -> None:
        """Open a socket in each of these namespaces; OSError if the kernel refuses."""
        for path in dict.fromkeys(namespaces):
            self._sockets.append(self._stack.enter_context(NetlinkSocket(Path(path))))

    def start(self, every: float) -> None:
        """Begin to forget one neighbour after the other, every `every` seconds."""
        self._thread = Thread(target=self._run, args=(every,), name="neighbours", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Forget no other; does not wait for a request under way."""
        self._enough.set()

    def close(self) -> None:
        """Wait until the thread has ended, and close the sockets."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._stack.close()

    def _run(self, every: float) -> None:
        try:
            due = time.monotonic() + every
            while self._sockets and not self._enough.wait(max(due - time.monotonic(), 0)):
                self._forget_one()
                # However long the kernel has taken; what is missed is not made up for.
                due = max(due + every, time.monotonic())
        except BaseException as error:  # noqa: BLE001 - raised by check(), in the thread that wants to know
            self._error = error

    def _forget_one(self) -> None:
        """Forget one neighbour of the next namespace. NetlinkError if the kernel refuses."""
        rounds, place = divmod(self._turn, len(self._sockets))
        self._turn += 1
        sock = self._sockets[place]
        found = [*_found(sock)]
        if found:
            try:
                sock.request("forget a neighbour", found[rounds % len(found)])
            except NetlinkError as error:
                # It may have gone by itself meanwhile, or with its interface.
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise


def _found(sock: NetlinkSocket) -> Iterator[bytes]:
    """Yield a request for each neighbour that was asked for and found; it makes the kernel forget the answer.

    Link-local ones are left alone: no flow has such an address.
    """
    for answer in sock.dump("list neighbours", pack_message(_RTM_GETNEIGH, bytes(_NDMSG.size))):
        family, ifindex, state, _, _ = _NDMSG.unpack_from(answer, _HEADER)
        address = dict(attributes(answer, _HEADER + _NDMSG.size)).get(_NDA_DST)
        if not state & _FOUND or address is None or ip_address(bytes(address)).is_link_local:
            continue
        wanted = _NDMSG.pack(family, ifindex, _NUD_NONE, 0, 0) + pack_attribute(_NDA_DST, address)
        yield pack_message(_RTM_NEWNEIGH, wanted, NLM_F_REPLACE)

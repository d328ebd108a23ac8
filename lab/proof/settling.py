"""Waiting for what the kernel does later: it empties an array of programs some time after its last user is gone.

It does so slot by slot, and waits for running programs after each: a second in all on a busy machine. Packets that come
before that are answered by programs that nobody will have any more.
"""

from __future__ import annotations

import errno
import time

from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.map import Map
from lab.node.node import Node
from lab.system.pace import slowness
from lab.watch.snapshot import take

_TIMEOUT = 5.0
"""Seconds that it may take on an ordinary machine. What is full for longer has a user."""

_PAUSE = 0.01
"""Seconds between two looks."""


def settle(node: Node) -> None:
    """Wait until each calls map that the programs at the hooks use and that no pin keeps is empty."""
    now = take(node)
    left: set[int] = {*now.calls} - {pin.id for pin in now.pins.values()}
    deadline = time.monotonic() + _TIMEOUT * slowness()
    while (left := {ident for ident in left if _is_filled(ident)}) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _is_filled(ident: int) -> bool:
    try:
        fd = bpf.map_fd_by_id(ident)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return False  # the map is gone
    with Map.of(fd, "") as array:
        return bool(bpf.map_slots(array.fd, array.info.max_entries))

"""Waiting for what the kernel does later: it empties an array of programs some time after its last user is gone.

It does so slot by slot, and waits for running programs after each: a second in all on a busy machine. Packets that come
before that are answered by programs that nobody will have any more. A user is a pin, or a descriptor of a process: what
a loader holds open stays full as long as it lives.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.inventory import Known
from datapath.kernel.map import Map
from lab.node.node import Node
from lab.system.pace import slowness
from lab.watch.attached import unpinned_calls_maps
from lab.watch.descriptors import held_maps

_TIMEOUT = 5.0
"""Seconds that it may take on an ordinary machine. What is full for longer has a user that cannot be seen."""

_PAUSE = 0.01
"""Seconds between two looks."""


@dataclass
class Settler:
    """Waits, before packets are sent, for the calls maps of nodes that nobody holds any more.

    Maps that were not emptied in time are waited for once.
    """

    _lasting: set[int] = field(default_factory=set)
    _none: bool = False
    _known: Known = field(default_factory=Known)

    def settle(self, nodes: Iterable[Node], *, only_added: bool = False) -> None:
        """Wait until each calls map that packets can be led through, and that has no user, is empty.

        `only_added`: since the last time on these nodes no pin was taken away, no hook or slot changed. If there was
        none without a pin, there is none now, and nobody looks: that takes longer than the packets.
        """
        if only_added and self._none:
            return
        found: set[int] = set().union(*(unpinned_calls_maps(node, self._known) for node in nodes))
        self._none = not found
        deadline = time.monotonic() + _TIMEOUT * slowness()
        while left := self._filling(found):
            if time.monotonic() >= deadline:
                self._lasting |= left
                return
            time.sleep(_PAUSE)

    def _filling(self, maps: Iterable[int]) -> set[int]:
        """Return those of the maps that are yet to be emptied."""
        filled = {ident for ident in maps if ident not in self._lasting and _is_filled(ident)}
        # Nearly always there are none, and no process is looked at.
        return filled - held_maps() if filled else filled


def _is_filled(ident: int) -> bool:
    try:
        fd = bpf.map_fd_by_id(ident)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return False  # the map is gone
    with Map.of(fd, "") as array:
        return bool(bpf.map_slots(array.fd, array.info.max_entries))

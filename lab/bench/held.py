"""Program arrays that a benchmark holds open, so that the kernel does not empty them beside what is measured.

A reload beside the emptying of what the last one has replaced takes two to four times as long
(datapath/reload/replaced.py), whichever variant it was that replaced it: that is noise, and none of the next one's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from datapath.base.mapnames import is_calls_map
from datapath.kernel import bpf
from lab.system.pace import slowness

_TIMEOUT = 10.0
"""Seconds that the kernel may take to empty what was let go; on with the measurement then."""


class HeldArrays:
    """Holds the calls maps that are pinned in `directories`, from a call of `hold` to one of `let_go`."""

    def __init__(self, *directories: Path) -> None:
        self.directories = list(directories)
        self._held: dict[int, int] = {}

    def hold(self) -> None:
        """Open what is pinned now: before each reload, so that nothing that it replaces is emptied."""
        for ident, fd in self._open():
            if ident in self._held:
                os.close(fd)
            else:
                self._held[ident] = fd

    def let_go(self) -> None:
        """Close all, and wait until the kernel has emptied those that are not pinned any more."""
        held, self._held = self._held, {}
        for fd in held.values():
            os.close(fd)
        wait_until_gone(held.keys() - self.pinned())

    def pinned(self) -> set[int]:
        """Return the ids of the maps that are pinned now."""
        found = set()
        for ident, fd in self._open():
            os.close(fd)
            found.add(ident)
        return found

    def _open(self) -> Iterator[tuple[int, int]]:
        # A node that nobody has loaded anything on has none.
        for directory in filter(Path.is_dir, self.directories):
            for name in os.listdir(directory):
                if is_calls_map(name.partition(":")[0]):
                    fd = bpf.obj_get(directory / name)
                    yield bpf.map_info(fd).id, fd


def wait_until_gone(maps: Iterable[int]) -> None:
    """Wait until there are no maps of these ids any more; some seconds at most."""
    left, deadline = set(maps), time.monotonic() + _TIMEOUT * slowness()
    while (left := {ident for ident in left if bpf.has_map(ident)}) and time.monotonic() < deadline:
        time.sleep(0.01)

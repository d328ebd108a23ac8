"""Program arrays that a reload has replaced, held open while others follow.

The kernel empties a program array whose last user is gone (prog_array_map_clear), slot by slot, and for each tail call
that leads there it patches the code of a program, under a mutex and with an interrupt of every CPU. To load a program
takes the same mutex (text_poke_copy). A reload beside it takes two to four times as long, and both CPUs are busy; the
same arrays emptied later, many at once, cost next to nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datapath.kernel import bpf

MOST = 64
"""Arrays held at most, with the programs in them: then all are let go at once. Each holds some 100 KiB of code."""


class ReplacedArrays:
    """Holds the arrays that it is given while a block of `held` runs; safe for threads.

    Nobody but running programs can still use such an array. One that a faulty reload has left in use stays filled for
    as long: that the kernel empties it shows only after the block.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._held: list[int] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold until the block ends; blocks may be nested and lie beside each other, the last one to end lets go."""
        with self._lock:
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._let_go()

    def take(self, path: Path) -> None:
        """Hold the array that is pinned at `path`; nothing without a block. BpfError if it cannot be opened."""
        with self._lock:
            if not self._blocks:
                return
            if len(self._held) >= MOST:
                self._let_go()
            self._held.append(bpf.obj_get(path))

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for fd in held:
            os.close(fd)

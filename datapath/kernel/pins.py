"""The migration protocol on a bpffs: a map that cannot be reused is moved aside until nothing needs it any more.

For a pin P (pkg/bpf/bpffs_migrate.go): `repin` renames P to P:pending, the load then creates a new map at P;
`finalize` removes P:pending, `revert` renames it back over the new one. The kernel empties a program array when its
last pin or descriptor goes, even though attached programs still use it, so `finalize` must wait for the last attach.

Unlike the reference, which removes whatever it finds at P:pending, `recover` looks at what a killed reload left behind
and keeps the maps that attached programs use: see there.

The array of policy programs is different: programs of all endpoints jump through it, so that it stays in use when the
reload that has replaced it ends. It is retired: `retire` renames P:pending to P:retired-<map id>, and a later reload
removes that pin once no program jumps through the array (datapath/reload/policyarrays.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from datapath.bpftypes import MapType
from datapath.kernel import bpf
from datapath.mapnames import POLICY_ARRAYS

PENDING, STALE, RETIRED = ":pending", ":stale", ":retired-"


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned map; `path` is where programs expect it."""

    path: Path

    @property
    def pending(self) -> Path:
        return Path(f"{self.path}{PENDING}")

    @property
    def stale(self) -> Path:
        return Path(f"{self.path}{STALE}")

    def leftovers(self) -> list[Path]:
        """Return what reloads under way, or killed, have moved aside: `pending`, then older ones, the newest first."""
        found = [path for path in self._beside() if RETIRED not in path.name]
        return sorted(found, key=lambda path: (path != self.pending, -len(path.name)))

    def retired(self) -> list[Path]:
        """Return the replaced arrays of policy programs that programs may still jump through."""
        return [path for path in self._beside() if RETIRED in path.name]

    def _beside(self) -> list[Path]:
        directory, name = os.path.split(self.path)
        try:
            return [Path(directory, other) for other in os.listdir(directory) if other.startswith(f"{name}:")]
        except FileNotFoundError:
            return []

    def repin(self) -> bool:
        """Move the map aside; False if nothing is pinned. A `pending` that is still needed moves to `stale`."""
        if self.pending.exists():
            # Two reloads may have been killed one after the other: there can be a stale one already.
            kept = self.stale
            while kept.exists():
                kept = kept.with_name(kept.name + STALE)
            self.pending.rename(kept)
        try:
            self.path.rename(self.pending)
        except FileNotFoundError:
            return False
        return True

    def finalize(self) -> None:
        """Let go of the old maps. Only when no attached program uses them."""
        for path in self.leftovers():
            path.unlink(missing_ok=True)

    def retire(self) -> None:
        """Keep the old maps pinned after the reload, under names that say so."""
        for path in self.leftovers():
            path.rename(f"{self.path}{RETIRED}{map_id(path)}")

    def revert(self) -> None:
        """Put the old map back over whatever was pinned in its place."""
        self.pending.rename(self.path)
        for kept in self.leftovers()[:1]:
            kept.rename(self.pending)

    def recover(self, in_use: Callable[[int], bool]) -> str | None:
        """Finish what killed reloads began; `in_use` tells whether a program that packets meet uses a map id.

        Killed before its first attach: the old map goes back. Killed after its last: the old one is let go. Killed in
        between, old and new programs are attached side by side: the kernel would empty a program array that loses its
        pin, so each keeps its own until the reload that follows has replaced both; other maps need no pin to live on.
        An array of policy programs is complete before it is pinned, and all its successors and predecessors are kept
        alike: the one at its place stays there, the others are retired.
        Returns what was done, None if there was nothing to do.
        """
        left = self.leftovers()
        if not left:
            return None
        if self.path.name in POLICY_ARRAYS:
            return self._recover_policy_array(left)
        there = self.path.exists()
        needed = [path for path in left if in_use(map_id(path))]
        if not there or (needed and not in_use(map_id(self.path))):
            # Without a user the newest is as good as any, and better than none: it has its content.
            back = (needed or left)[0]
            back.rename(self.path)
            self._let_go(path for path in left if path is not back and path not in needed)
            return f"restored {self.path.name} from {back.name}, left by a reload that did not end"
        kept = [path for path in needed if _is_program_array(path)]
        self._let_go(path for path in left if path not in kept)
        if kept:
            return f"kept {', '.join(path.name for path in kept)}: a reload died between two attaches"
        return f"removed {', '.join(path.name for path in left)}, left by a reload that did not end"

    def _recover_policy_array(self, left: list[Path]) -> str:
        if not self.path.exists():
            left[0].rename(self.path)
            self.retire()
            return f"restored {self.path.name} from {left[0].name}, left by a reload that did not end"
        self.retire()
        return f"retired {', '.join(path.name for path in left)}, left by a reload that did not end"

    def _let_go(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


def left_behind(directory: Path) -> frozenset[str]:
    """Return the names of the maps beside which there are pins of reloads that did not end, or are under way."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return frozenset()
    return frozenset(name.partition(":")[0] for name in names if ":" in name and RETIRED not in name)


def map_id(path: Path) -> int:
    """Return the id of the map that is pinned at `path`."""
    return _info(path).id


def _is_program_array(path: Path) -> bool:
    return _info(path).type == MapType.PROG_ARRAY


def _info(path: Path) -> bpf.MapInfo:
    fd = bpf.obj_get(path)
    try:
        return bpf.map_info(fd)
    finally:
        os.close(fd)

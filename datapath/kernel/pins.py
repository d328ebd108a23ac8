"""The migration protocol on a bpffs: a map that cannot be reused is moved aside until nothing needs it any more.

For a pin P (pkg/bpf/bpffs_migrate.go): `repin` renames P to P:pending, the load then creates a new map at P;
`finalize` removes P:pending, `revert` renames it back over the new one. The kernel empties a program array when its
last pin or descriptor goes, even though attached programs still use it, so `finalize` must wait for the last attach.

Unlike the reference, which removes whatever it finds at P:pending, the next reload looks at what a killed one left
behind, and keeps the maps that attached programs use (datapath/reload/recovery.py).

The array of policy programs, and the maps that the control plane writes, are different: programs of all endpoints use
them, so that they stay in use when the reload that has replaced them ends. They are retired: `retire` renames P:pending
to P:retired-<map id>, and a later reload removes that pin once no program uses the map (datapath/reload/retired.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from datapath.kernel.uapi import MapInfo

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
        """Return the replaced maps that programs may still use."""
        return [path for path in self._beside() if RETIRED in path.name]

    def _beside(self) -> list[Path]:
        directory, prefix = os.path.split(f"{self.path}:")
        try:
            return [Path(directory, other) for other in os.listdir(directory) if other.startswith(prefix)]
        except FileNotFoundError:
            return []

    def repin(self, on_undo: Callable[[Callable[[], object]], object] | None = None) -> bool:
        """Move the map aside; False if nothing is pinned. A `pending` that is still needed moves to `stale`.

        `on_undo` is given what takes each rename back, before it is done; called the last first, they are `revert`.
        """
        if self.pending.exists():
            # Two reloads may have been killed one after the other: there can be a stale one already.
            kept = self.stale
            while kept.exists():
                kept = kept.with_name(kept.name + STALE)
            if on_undo is not None:
                on_undo(self._stale_back)
            self.pending.rename(kept)
        moved: list[Path] = []
        if on_undo is not None:
            # There is no other `pending` by now: if there is one then, it is this map.
            on_undo(lambda: self._pending_back(moved))
        try:
            self.path.rename(self.pending)
        except FileNotFoundError:
            return False
        moved.append(self.pending)
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
        self._pending_back([self.pending])
        self._stale_back()

    def _pending_back(self, moved: Collection[Path]) -> None:
        """Move the map back, if there is one; `moved` says where it must be, unless something is in its place."""
        try:
            self.pending.rename(self.path)
        except FileNotFoundError:
            if moved and not self.path.exists():
                raise

    def _stale_back(self) -> None:
        if not self.pending.exists():
            for kept in self.leftovers()[:1]:
                kept.rename(self.pending)


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


def is_program_array(path: Path) -> bool:
    """Tell whether what is pinned at `path` is a program array: the kernel empties one that loses its last pin."""
    return _info(path).type == MapType.PROG_ARRAY


def _info(path: Path) -> MapInfo:
    fd = bpf.obj_get(path)
    try:
        return bpf.map_info(fd)
    finally:
        os.close(fd)

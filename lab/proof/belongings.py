"""What belongs to a lab besides its directory, and what of that is still there when the lab is gone."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.inventory import all_programs
from datapath.kernel.map import pinned_maps
from lab.node import registry
from lab.system.inhabitants import inhabitants
from lab.system.pace import slowness

_SECONDS = 20.0
"""Seconds in which the kernel frees a removed lab's interfaces, programs and maps, on an ordinary machine."""

_OURS = ("cilium_", "lxc")
"""How interfaces of a lab are called: the machine itself gets none of these."""


@dataclass(frozen=True, slots=True)
class Belongings:
    """The ids of the programs and maps of a lab, and the numbers of its network namespaces."""

    programs: frozenset[int] = frozenset()
    maps: frozenset[int] = frozenset()
    namespaces: frozenset[int] = frozenset()

    def __or__(self, other: Belongings) -> Belongings:
        return Belongings(self.programs | other.programs, self.maps | other.maps, self.namespaces | other.namespaces)

    @classmethod
    def of(cls, name: str) -> Belongings:
        """Return those of a lab in whatever state it is: what is pinned, what uses that, and what such programs use."""
        root = registry.lab_root(name)
        pinned = {found.info.id for found in pinned_maps(root / registry.BPFFS / "tc" / "globals")}
        used = {ident: info.map_ids for ident, info in all_programs().items() if pinned.intersection(info.map_ids)}
        try:
            namespaces = frozenset(entry.stat().st_ino for entry in os.scandir(root / registry.NAMESPACES))
        except FileNotFoundError:
            namespaces = frozenset()
        return cls(frozenset(used), frozenset(pinned.union(*used.values())), namespaces)

    def at_once(self, before: Collection[str]) -> Iterator[str]:
        """Yield what is left of it as soon as the lab is removed, before another has its namespaces' numbers.

        `before` are the interfaces that the machine had without the lab (`interfaces_here`).
        """
        yield from (f"process {pid} is left over" for pid in inhabitants(self.namespaces))
        held = sorted(self.namespaces.intersection(_namespaces_here()))
        yield from (f"namespace {number} is held open" for number in held)
        own = sorted(name for name in interfaces_here().difference(before) if name.startswith(_OURS))
        yield from (f"interface {name} is left over outside of the lab" for name in own)

    def in_the_end(self, deadline: float, cancel: threading.Event) -> Iterator[str]:
        """Yield the programs and maps that the kernel has not freed by `deadline`, which is one of `freed_by`.

        It is not waited for once `cancel` is set.
        """
        kinds = (("program", self.programs, bpf.prog_fd_by_id), ("map", self.maps, bpf.map_fd_by_id))
        for what, idents, opened in kinds:
            left = set(idents)
            while left := {ident for ident in left if _is_there(ident, opened)}:
                if time.monotonic() > deadline or cancel.wait(0.05):
                    yield from (f"{what} {ident} is left over" for ident in sorted(left))
                    break


def freed_by() -> float:
    """Return by when the kernel has freed all of the labs that are removed now (CLOCK_MONOTONIC): it takes a while."""
    return time.monotonic() + _SECONDS * slowness()


def interfaces_here() -> frozenset[str]:
    """Return the names of the interfaces of the machine itself."""
    return frozenset(os.listdir("/sys/class/net"))


def _is_there(ident: int, opened: Callable[[int], int]) -> bool:
    try:
        os.close(opened(ident))
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _namespaces_here() -> Iterator[int]:
    """Yield the numbers of the namespaces that this process holds open."""
    device = os.stat("/proc/self/ns/net").st_dev
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.stat(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing
            continue
        if found.st_dev == device:
            yield found.st_ino

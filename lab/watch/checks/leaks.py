"""Invariant 9: what is loaded, pinned, linked or held open, and of no use."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.hooks import LINKED
from datapath.kernel.inventory import all_programs
from datapath.kernel.map import Map
from lab.agent.agent import Agent
from lab.system.pace import slowness
from lab.watch.checks.hooks import wanted_pins
from lab.watch.checks.objects import InterfaceObject
from lab.watch.checks.pins import OWN_MAP
from lab.watch.checks.text import some
from lab.watch.checks.xdp import declared_links, declared_pins
from lab.watch.descriptors import Descriptors, own_descriptors
from lab.watch.snapshot import Snapshot, take
from lab.watch.violation import Violation

UNLOAD_SECONDS = 5.0
"""Seconds in which the kernel frees the programs that a reload replaced, on an ordinary machine (lab.system.pace)."""

CLOSE_SECONDS = 0.5
"""Seconds in which a thread closes what it has opened for a moment."""


def check_leaks(
    agent: Agent,
    before: Snapshot,
    now: Snapshot,
    objects: Sequence[InterfaceObject],
    expected: Collection[str] = (),
) -> Iterator[Violation]:
    """Yield programs that nothing reaches, links, and pins that no object declares (invariants 9 and 10).

    A new pin whose path contains one of the texts in `expected` is somebody else's.
    """
    yield from (Violation(9, what) for what in _programs(agent, now))
    left = now.around.links - before.around.links - declared_links(now)
    yield from (Violation(9, f"BPF link {ident} is left over") for ident in sorted(left))
    yield from (Violation(9, what) for what in _pins(agent, before, now, objects, expected))
    yield from (Violation(9, what) for what in _tcx(before, now))


def check_descriptors(agent: Agent, before: Descriptors, now: Snapshot) -> Iterator[Violation]:
    """Yield what this process holds open of the node, more than at `before` and than it may keep (invariant 9)."""
    found = _lasting_descriptors(agent, before)
    yield from (Violation(9, what) for what in _maps(before, found, now))
    for what, was, has in (
        ("netlink sockets in the node", before.netlink, found.netlink),
        ("descriptors of its namespaces", before.namespaces, found.namespaces),
    ):
        if has > was:
            yield Violation(9, f"this process has {has} {what} open instead of {was}")


def _lasting_descriptors(agent: Agent, before: Descriptors) -> Descriptors:
    """Return what stays open: another thread of this process, of a capture say, enters a namespace for a moment."""
    deadline = time.monotonic() + CLOSE_SECONDS * slowness()
    while True:
        found = own_descriptors(agent.node, idle_sockets=agent.loader.idle_sockets)
        more = found.netlink > before.netlink or found.namespaces > before.namespaces
        if not more or time.monotonic() > deadline:
            return found


def _programs(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield programs that nothing reaches. The kernel frees programs with a delay: wait for it."""
    deadline = time.monotonic() + UNLOAD_SECONDS * slowness()
    while (extra := now.programs - now.reachable) and time.monotonic() < deadline:
        time.sleep(0.02)
        now = take(agent.node)
    if extra:
        yield f"{len(extra)} programs are loaded that nothing reaches: {some(extra)}"


def _pins(
    agent: Agent,
    before: Snapshot,
    now: Snapshot,
    objects: Sequence[InterfaceObject],
    expected: Collection[str],
) -> Iterator[str]:
    declared = {name for each in objects if each.spec is not None for name in each.spec.maps}
    declared |= {name for name in now.pins if any(text in name for text in expected)}
    for name in sorted(now.pins.keys() - before.pins.keys() - declared):
        # The checks of pins tell the others.
        if ":" not in name and OWN_MAP.fullmatch(name) is None:
            yield f"map {name} is pinned, and no object declares it"
    for path in sorted(now.around.pins - before.around.pins - wanted_pins(agent) - declared_pins(agent, now)):
        if not any(text in path for text in expected):
            yield f"pin {path} is left over"


def _tcx(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """Yield programs of others at hooks of tcx and netkit that nobody has removed again."""
    for (ifname, direction), found in now.filters.items():
        old = {item.program_id for item in before.filters.get((ifname, direction), ())}
        for item in found:
            if item.kind in LINKED and not item.is_ours and item.program_id not in old:
                yield f"{ifname} {direction}: {item.kind} program {item.program_id} is left over"


def _maps(before: Descriptors, found: Descriptors, now: Snapshot) -> Iterator[str]:
    """Yield maps that only this process keeps.

    The loader keeps the shared maps open. One that another process has replaced meanwhile stays open until the loader
    looks at its pin again: one of each name, and never a program array.
    """
    pinned = {pin.id for pin in now.pins.values()}
    kept = [ident for ident in found.maps if ident not in before.maps and ident not in pinned]
    if not kept:
        return
    used = {ident for info in all_programs().values() for ident in info.map_ids}
    orphans = Counter[str]()
    for ident in kept:
        if ident in used:
            continue
        try:
            with Map.of(bpf.map_fd_by_id(ident), "") as orphan:
                info = orphan.info
        except BpfError as error:
            if error.errno != errno.ENOENT:  # gone meanwhile
                raise
            continue
        orphans[info.name] += 1
        if info.type == MapType.PROG_ARRAY or orphans[info.name] > 1:
            yield f"this process keeps map {ident} ({info.name}), which nothing uses"

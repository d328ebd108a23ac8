"""Every packet that dies in a scenario's namespaces, in a program or in the kernel, from its begin to its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.node import registry
from lab.node.maps import MapNotLoaded
from lab.node.node import Node
from lab.system.repeated import Repeated
from lab.system.words import plural
from lab.traffic.defaults import ends
from lab.traffic.flows import Flow
from lab.watch.attribution import Ownership
from lab.watch.drop_events import DropEvent, DropEvents
from lab.watch.kernel_drops import DropsUnavailable, KernelDrop, KernelDrops
from lab.watch.monitor import MonitorBusy
from lab.watch.net_counters import NetCounters, moved, read

INTERVAL = 0.1
"""Seconds between two readings of the rings, which hold more than 1,000 drops for each CPU."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace of a node by its name: node, outside, a pod's."""

    node: str
    name: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was dropped on all nodes of a scenario.

    `programs` are the drop notifications by node, `kernel` the drops of the kernel, if `kernel_watched`. `precise`: all
    of them are drops; otherwise packets of those without a reason may have arrived. `counters` are the
    counters of losses that have moved, by namespace and name. `namespaces` are by inode number. `gaps` says what
    could not be watched, and why. `ownership` tells whose a packet is. `refusals` are the verdicts of policies that
    refuse a packet, by node and the drop's reason; a node of which messages were lost or cannot be read has none.
    """

    ownership: Ownership
    programs: Mapping[str, tuple[DropEvent, ...]]
    kernel: tuple[KernelDrop, ...]
    kernel_watched: bool
    counters: NetCounters
    namespaces: Mapping[int, Namespace]
    gaps: tuple[str, ...]
    refusals: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    precise: bool = True

    def place(self, drop: KernelDrop) -> str:
        """Return where a packet was dropped, such as ` on lxc1 in node`."""
        device = f" on {drop.ifname}" if drop.ifname else ""
        return f"{device} in {self.namespaces[drop.netns].name}"


NOTHING = Dropped(Ownership(()), {}, (), True, {}, {}, ())
"""No drops: what is known without a watch."""


class Drops:
    """A context manager: `read` returns what was dropped on the nodes since it was entered.

    The programs must be loaded. A thread empties the rings and finds the namespaces of new pods.
    """

    def __init__(self, nodes: Sequence[Node], flows: Sequence[Flow]) -> None:
        self._nodes = tuple(nodes)
        self._flows = tuple(flows)
        self._stack = ExitStack()
        self._reading = Repeated("drops", self._collect, interval=INTERVAL)
        self._lock = threading.Lock()
        self._events: dict[str, DropEvents] = {}
        self._kernel: KernelDrops | None = None
        self._names: dict[int, Namespace] = {}
        self._gaps: list[str] = []
        self._before: NetCounters = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self._nodes:
                self._listen(stack, node)
            try:
                self._kernel = stack.enter_context(KernelDrops())
                if not self._kernel.precise:
                    self._gaps.append(
                        "kernel drops without a reason are no findings: this kernel frees what has arrived so, too"
                    )
            except DropsUnavailable as error:
                self._gaps.append(f"kernel drops are not watched, only counted: {error}")
            self._collect()
            self._before = self._counters()
            stack.enter_context(self._reading)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, value, tb)

    def read(self) -> Dropped:
        """Return what was dropped until now. Raises what has ended the reading of the rings before, if anything has.

        If nobody asks, leaving the context raises it.
        """
        self._reading.check()
        self._collect()
        with self._lock:
            lost = self._kernel.lost if self._kernel is not None else 0
            late = [f"{plural(lost, 'packet')} dropped by the kernel came too fast to be read"] if lost else []
            if any(events.lost for events in self._events.values()):
                late.append("drop notifications may be missing: programs wrote faster than their rings were read")
            if any(events.unknown for events in self._events.values()):
                late.append("drop notifications are missing: programs write them in a version that is not known here")
            return Dropped(
                ownership=self._ownership(),
                programs={name: events.events for name, events in self._events.items()},
                kernel=self._kernel.events if self._kernel is not None else (),
                kernel_watched=self._kernel is not None,
                precise=self._kernel is None or self._kernel.precise,
                counters=moved(self._before, self._counters()),
                namespaces=dict(self._names),
                gaps=(*self._gaps, *late),
                refusals={
                    name: events.refusals for name, events in self._events.items() if not events.lost + events.unknown
                },
            )

    def _listen(self, stack: ExitStack, node: Node) -> None:
        try:
            self._events[node.name] = stack.enter_context(DropEvents(node))
        except (MapNotLoaded, MonitorBusy) as error:
            self._gaps.append(f"drop notifications are not read: {error}")

    def _collect(self) -> None:
        with self._lock:
            self._find_namespaces()
            for events in self._events.values():
                events.drain()
            if self._kernel is not None:
                self._kernel.drain()

    def _find_namespaces(self) -> None:
        """Watch the namespaces that are there, and no others; the name of a namespace that is gone is kept.

        The kernel gives the number of one that is gone to the next one that anybody makes, in another lab say.
        """
        present: dict[int, Namespace] = {}
        for namespace, path in self._namespaces():
            # A pod's namespace may go at any moment; its file is there before the namespace is mounted on it.
            with suppress(FileNotFoundError):
                present[path.stat().st_ino] = namespace
        self._names |= present
        if self._kernel is not None:
            self._kernel.watch(present)

    def _namespaces(self) -> Iterator[tuple[Namespace, Path]]:
        for node in self._nodes:
            for path in (node.root / registry.NAMESPACES).iterdir():
                yield Namespace(node.name, path.name), path

    def _counters(self) -> NetCounters:
        several = len(self._nodes) > 1
        return read({f"{n.node} {n.name}" if several else n.name: path for n, path in self._namespaces()})

    def _ownership(self) -> Ownership:
        known = [end for node in self._nodes for end in ends(node).values()]
        addresses = [address for _, ipv4, ipv6 in known for address in (ipv4, ipv6)]
        ports = sorted({node.spec.tunnel_port for node in self._nodes if node.spec.tunnel})
        return Ownership(self._flows, ends=addresses, tunnel_ports=ports)

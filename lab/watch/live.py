"""A running node at one moment, read without a lock and without a write: hooks, programs, loads, counters.

Nothing is held from one look to the next: an open descriptor of a namespace or a map would keep alive what others
remove. A reload under way is seen half done, as packets meet it.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns, time_ns

from datapath.errors import BpfError, ObjectError
from datapath.kernel import bpf
from datapath.kernel.hooks import Direction, Filter, all_filters
from datapath.kernel.inventory import program_by_id
from datapath.kernel.netlink import IFLA_IFNAME, RTM_GETLINK, NetlinkSocket, attributes, pack_message, text
from datapath.kernel.xdp import all_attached
from datapath.object import elffile
from datapath.reload.plans import CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN, OVERLAY_SUBJECT, XDP_SUBJECT
from lab.node import registry, status
from lab.node.node import Node
from lab.node.tcxhooks import pinned_links, tcx_programs
from lab.node.topology import HOST, HOST_ENDPOINT, NODE
from lab.watch import metrics

_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFLA_STATS64 = 23
_STATS = struct.Struct("=8Q")
"""The first of struct rtnl_link_stats64: packets, bytes, errors, drops, each received and sent."""
_GENERATION = "GENERATION"
"""The constant of our objects that tells which load handled a packet."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A program at a hook: `ingress`, `egress` or `xdp`. `loaded_ns` is when the kernel took it, by time.time_ns().

    `generation` is the number of the load, None where its object does not tell: it is not ours, or of other sources.
    """

    hook: str
    program: str
    program_id: int
    generation: int | None
    loaded_ns: int


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the node. `subject` is what is reloaded to give it programs; the counts are the kernel's."""

    name: str
    ifindex: int
    subject: str
    up: bool
    rx_packets: int
    tx_packets: int
    rx_dropped: int
    tx_dropped: int
    hooks: tuple[Hook, ...] = ()


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A reload whose object is written, but not committed; `pids` hold the lock of its endpoint."""

    subject: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """A node at one moment: `time_ns` by time.time_ns(), `clock_ns` by a clock that nobody sets.

    `packets` are those of cilium_metrics by (reason, direction), empty before the first load. `loads` is the number of
    the last load that was begun, None before the first.
    """

    lab: str
    time_ns: int
    clock_ns: int
    interfaces: tuple[Interface, ...]
    packets: Mapping[tuple[int, int], int]
    loads: int | None
    under_way: tuple[UnderWay, ...] = ()


@dataclass(slots=True)
class Looker:
    """Looks at one node again and again. It remembers what does not change: programs by id, objects by their inode.

    `look` raises LabNotFound or LabNotReady once the lab is taken down, also if that happens during the look.
    """

    node: Node
    _booted_ns: int = field(default_factory=lambda: time_ns() - clock_gettime_ns(CLOCK_BOOTTIME))
    _programs: dict[int, tuple[str, int]] = field(default_factory=dict)
    _objects: dict[Path, tuple[tuple[int, int], int | None]] = field(default_factory=dict)

    def look(self) -> Look:
        """Return the present state of the node."""
        self.node.refresh()
        try:
            return self._look()
        except Exception:
            # Whatever is missing by now: if it is the whole lab, that is what is told.
            self.node.refresh()
            raise

    def _look(self) -> Look:
        state = self.node.root / registry.STATE
        now, clock = time_ns(), clock_gettime_ns(CLOCK_BOOTTIME)
        # Before and after the hooks: of a reload that commits in between, the object is not yet that of the programs.
        under_way = tuple(self._under_way(state))
        with NetlinkSocket(self.node.netns(NODE)) as socket:
            interfaces = tuple(self._interfaces(socket))
        self._forget(interfaces)
        return Look(
            self.node.name,
            now,
            clock,
            interfaces,
            metrics.packets(self.node),
            _number(state / "generation"),
            tuple({each.subject: each for each in (*under_way, *self._under_way(state))}.values()),
        )

    def _interfaces(self, socket: NetlinkSocket) -> Iterator[Interface]:
        subjects = {pod.ifname: pod.name for pod in (self.node.facts.health, *self.node.pods)}
        subjects[CILIUM_VXLAN] = OVERLAY_SUBJECT
        known = {CILIUM_HOST, CILIUM_NET, *subjects, *self.node.spec.devices, self.node.facts.uplink.name}
        at_xdp, pins = all_attached(socket), pinned_links(self.node)
        for message in socket.dump("list interfaces", pack_message(RTM_GETLINK, bytes(16))):
            ifindex, flags = struct.unpack_from("=iI", message, 20)
            values = dict(attributes(message, 32))
            name = text(values[IFLA_IFNAME])
            # The fallback tunnels of modules are down, and nobody's.
            if flags & _IFF_LOOPBACK or (name not in known and not flags & _IFF_UP):
                continue
            rx, tx, _, _, _, _, rx_dropped, tx_dropped = _STATS.unpack_from(values[_IFLA_STATS64])
            subject = subjects.get(name, HOST)
            path, hooks = self._object(subject, name), []
            for each in self._filters(socket, name, ifindex, pins):
                shown = each.name.removesuffix(f"-{name}") or each.kind
                hooks.append(self._hook(str(each.direction), shown, each.program_id, path))
            hooks += [self._hook("xdp", "", each.program_id, self._xdp_object(name)) for each in at_xdp.get(name, ())]
            counts = (rx, tx, rx_dropped, tx_dropped)
            yield Interface(name, ifindex, subject, bool(flags & _IFF_UP), *counts, hooks=tuple(hooks))

    def _filters(self, socket: NetlinkSocket, ifname: str, ifindex: int, pins: dict[int, str]) -> Iterator[Filter]:
        for direction in Direction:
            yield from tcx_programs(self.node, ifname, ifindex, direction, pins)
            yield from all_filters(socket, ifindex, direction)

    def _hook(self, hook: str, name: str, program: int, path: Path) -> Hook:
        """Return a program at a hook; without a name of the hook's, it has the kernel's."""
        known, loaded = self._program(program)
        return Hook(hook, name or known, program, self._generation(path), loaded and self._booted_ns + loaded)

    def _program(self, ident: int) -> tuple[str, int]:
        """Return the kernel's name of a program and when it was loaded, ns since boot; nothing of one that is gone."""
        if ident not in self._programs:
            try:
                with program_by_id(ident) as descriptor:
                    info = bpf.prog_info(descriptor)
            except BpfError as error:
                if error.errno != errno.ENOENT:
                    raise
                return "", 0
            self._programs[ident] = info.name, info.load_time
        return self._programs[ident]

    def _forget(self, interfaces: tuple[Interface, ...]) -> None:
        """Drop what is remembered of programs that no hook runs any more."""
        present = {hook.program_id for each in interfaces for hook in each.hooks}
        self._programs = {ident: known for ident, known in self._programs.items() if ident in present}

    def _object(self, subject: str, ifname: str) -> Path:
        """Return the object that the programs of an interface are loaded from (datapath/reload/plans.py)."""
        state = self.node.root / registry.STATE
        if subject == OVERLAY_SUBJECT:
            return state / "bpf_overlay.o"
        if subject != HOST:
            return state / str(self.node.pod(subject).endpoint_id) / "bpf_lxc.o"
        names = {CILIUM_HOST: "bpf_host.o", CILIUM_NET: "bpf_host_cilium_net.o"}
        return state / str(HOST_ENDPOINT) / names.get(ifname, f"bpf_netdev_{ifname}.o")

    def _xdp_object(self, ifname: str) -> Path:
        return self.node.root / registry.STATE / XDP_SUBJECT / f"bpf_xdp_{ifname}.o"

    def _generation(self, path: Path) -> int | None:
        """Return the number of the load that an object was written for; None if it does not tell."""
        try:
            found = path.stat()
        except FileNotFoundError:
            self._objects.pop(path, None)
            return None
        mark = found.st_ino, found.st_mtime_ns
        known = self._objects.get(path)
        if known is None or known[0] != mark:
            known = self._objects[path] = mark, _generation_in(path)
        return known[1]

    def _under_way(self, state: Path) -> Iterator[UnderWay]:
        """Yield what has an object that is not committed yet: a reload is writing, loading or attaching it."""
        directories = {HOST: state / str(HOST_ENDPOINT), OVERLAY_SUBJECT: state, XDP_SUBJECT: state / XDP_SUBJECT}
        pods = (self.node.facts.health, *self.node.pods)
        directories |= {pod.name: state / str(pod.endpoint_id) for pod in pods}
        for subject, directory in directories.items():
            try:
                names = os.listdir(directory)
            except FileNotFoundError:
                continue
            if any(name.endswith(".o.new") for name in names):
                yield UnderWay(subject, _holders(directory / "lock"))


def _holders(path: Path) -> tuple[int, ...]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    try:
        return status.holders_of(descriptor)
    finally:
        os.close(descriptor)


def _number(path: Path) -> int | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return int(content) if content.isdigit() else None


def _generation_in(path: Path) -> int | None:
    try:
        elf = elffile.read(str(path), path.read_bytes())
    except (FileNotFoundError, ObjectError):
        return None
    for symbol in elf.symbols:
        if symbol.name == _GENERATION and 0 < symbol.section < len(elf.sections):
            content = elf.content(elf.sections[symbol.section])
            return int.from_bytes(content[symbol.value : symbol.value + symbol.size], "little")
    return None

"""What the tests of the pipeline share: tiny programs, interfaces, and a node whose whole state can be compared."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from datapath.base.bpftypes import MapType, ProgType
from datapath.endpoint import DatapathConfig, Endpoint
from datapath.errors import ReloadlabError
from datapath.kernel import bpf, hooks, tcx
from datapath.kernel.hooks import Direction, Filter
from datapath.kernel.inventory import program_maps, slots
from datapath.kernel.map import Map
from datapath.kernel.netlink import NetlinkSocket, attributes, text
from datapath.kernel.pins import RETIRED
from datapath.loader import Loader
from datapath.reload.outcome import Outcome
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from datapath.reload.step import Plan, Step
from datapath.reload.transaction import Observer
from datapath.reload.workspace import Workspace
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.tools import run
from lab.watch.invariants import check_unchanged
from lab.watch.snapshot import Snapshot, take
from tests.netns import nsenter

NEEDS_TCX = pytest.mark.skipif(os.geteuid() == 0 and not tcx.is_supported(), reason="no tcx before Linux 6.6")
"""Of tests that are privileged: without root they are skipped for that reason, and the kernel is not asked."""

TC_ACT_OK, TCX_NEXT, XDP_PASS = 0, -1, 2
_LD_IMM64, _MOV_R0, _EXIT, _PSEUDO_MAP_FD = 0x18, 0xB7, 0x95, 1
_RTM_GETQDISC = 38


def load_returning(value: int, kind: ProgType = ProgType.SCHED_CLS, name: str = "tiny") -> int:
    """Load a program of two instructions that returns `value`; the caller closes the descriptor."""
    return _load(b"", value, kind, name)


def load_using(map_fd: int) -> int:
    """Load a tc program that refers to a map; the caller closes the descriptor."""
    return _load(struct.pack("=BBhi", _LD_IMM64, _PSEUDO_MAP_FD << 4 | 1, 0, map_fd) + bytes(8), 0)


def _load(insns: bytes, value: int, kind: ProgType = ProgType.SCHED_CLS, name: str = "tiny") -> int:
    insns += struct.pack("=BBhi", _MOV_R0, 0, 0, value) + struct.pack("=BBhi", _EXIT, 0, 0, 0)
    fd = bpf.prog_load(kind, insns, "GPL", name=name)
    assert fd >= 0, os.strerror(-fd)
    return fd


@contextmanager
def program(value: int = TC_ACT_OK, kind: ProgType = ProgType.SCHED_CLS, name: str = "tiny") -> Iterator[int]:
    """Hold a program of two instructions for the time of a block."""
    fd = load_returning(value, kind, name)
    try:
        yield fd
    finally:
        os.close(fd)


def program_id(fd: int) -> int:
    return bpf.prog_info(fd).id


def until(condition: Callable[[], bool], what: str, *, seconds: float = 5.0) -> None:
    """Wait for a condition; the kernel does some things after the call that caused them."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.002)


class Array:
    """A program array that a loaded program uses, as an attached entry program does: no descriptor of it is open."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        fd = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 8, name="calls")
        try:
            self.id = bpf.map_info(fd).id
            self.user = load_using(fd)
            stack.callback(os.close, self.user)
            bpf.map_update(fd, struct.pack("=I", 7), struct.pack("=I", self.user))
            bpf.obj_pin(fd, path)
        finally:
            os.close(fd)

    @property
    def filled(self) -> bool:
        return slots(self.id) == {7: program_id(self.user)}

    def wait_until_emptied(self) -> None:
        until(lambda: slots(self.id) == {}, f"map {self.id} emptied")


def tc(netns: Path | str, *words: str) -> list[dict[str, Any]]:
    """Return what `tc -j` says inside a namespace."""
    answer = run(nsenter(netns, "tc", "-j", *words))
    return list(json.loads(answer or "[]"))


def ip(netns: Path | str, *words: str) -> list[dict[str, Any]]:
    """Return what `ip -j` says inside a namespace."""
    answer = run(nsenter(netns, "ip", "-j", *words))
    return [item for item in json.loads(answer or "[]") if item]


def qdiscs(netlink: NetlinkSocket) -> set[tuple[int, str]]:
    """Return (interface index, kind) of every qdisc that somebody added."""
    message = struct.pack("=IHHII", 36, _RTM_GETQDISC, 1, 0, 0) + bytes(20)
    found = set()
    for answer in netlink.dump("list qdiscs", message):
        ifindex = struct.unpack_from("=i", answer, 20)[0]
        kind = next((text(value) for number, value in attributes(answer, 36) if number == 1), "")
        if kind not in ("noqueue", "fq_codel", "pfifo_fast"):
            found.add((int(ifindex), kind))
    return found


def descriptors(*kinds: str) -> list[str]:
    """Return what the descriptors of this process lead to, sorted; with `kinds` only those that name one of them."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # that of the listing itself
        if not kinds or any(kind in target for kind in kinds):
            found.append(target)
    return sorted(found)


def dangerous_descriptors() -> list[str]:
    """Return the open programs and program arrays of this process: what a reload may not leave open.

    Shared maps are different: the loader keeps those open on purpose.
    """
    found = []
    for fd in os.listdir("/proc/self/fdinfo"):
        try:
            lines = Path("/proc/self/fdinfo", fd).read_text().splitlines()
        except FileNotFoundError:
            continue  # that of the listing itself
        values = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if "prog_id" in values:
            found.append(f"program {values['prog_id']}")
        elif values.get("map_type") == str(int(MapType.PROG_ARRAY)):
            found.append(f"program array {values['map_id']}")
    return sorted(found)


class Injected(ReloadlabError):
    """A fault that an observer raises."""


def inject(step: Step, work: Workspace) -> None:
    """Make the reload fail here; what a Gate does."""
    raise Injected(f"injected at {step.name} {step.target}")


@dataclass(frozen=True)
class State:
    """All that a reload which failed must leave as it was."""

    snapshot: Snapshot
    qdiscs: frozenset[tuple[int, str]]
    files: dict[str, tuple[int, int]]
    open: list[str]

    def differences(self, now: State) -> list[str]:
        """Return what is not the same any more, one line each."""
        found = [str(violation) for violation in check_unchanged(self.snapshot, now.snapshot)]
        for name in ("qdiscs", "files", "open"):
            old, new = getattr(self, name), getattr(now, name)
            if old != new:
                found.append(f"{name}: {old} -> {new}")
        return found


class Rig:
    """A node and its loader; a context manager. The control plane is one entry in every new map.

    `entries` makes it more; `on_entry` is called before each of them is written.

    All rigs share their templates: no test waits for a compiler that another test has waited for.
    """

    def __init__(self, node: Node, templates: Path, **changes: Any) -> None:
        self.node = node
        self.config = self._configuration(templates, **changes)
        self.loader = Loader(self.config, verifiers=1, on_new_map=self._fill)
        self.new_maps: list[str] = []
        self.entries = 1
        self.on_entry: Callable[[], object] = lambda: None
        self.generation = 1
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._nothing_left, descriptors())
            self.netlink = stack.enter_context(NetlinkSocket(self.config.netns))
            stack.enter_context(self.loader)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def configure(self, **changes: Any) -> None:
        """Change fields of the configuration for the reloads that follow."""
        self.config = replace(self.config, **changes)
        self.loader.configure(self.config)

    def endpoint(self, name: str, *, routes: bool = False) -> Endpoint:
        """Return an endpoint under the next generation number."""
        self.generation += 1
        endpoint = replace(self.node.endpoint(name), generation=self.generation)
        return endpoint if endpoint.is_host else endpoint.with_endpoint_routes(routes)

    def plan(self, subject: str, *, routes: bool = False) -> Plan:
        """Return the plan of the next reload of a pod, `host`, `overlay` or `xdp`."""
        if subject == XDP_SUBJECT:
            self.generation += 1
            return self.loader.plan_xdp(self.generation)
        if subject == OVERLAY_SUBJECT:
            self.generation += 1
            return self.loader.plan_overlay(self.generation)
        return self.loader.plan(self.endpoint(subject, routes=routes), subject=subject)

    def reload(
        self,
        subject: str,
        *,
        routes: bool = False,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Outcome:
        """Reload a pod, `host`, `overlay` or `xdp`."""
        return self.loader.apply(self.plan(subject, routes=routes), observer=observer, cancel=cancel)

    def state(self) -> State:
        """Read everything."""
        # The lock files are there to stay; what a template is made of is no part of the node's state.
        objects = self.config.state.rglob("*.o*")
        files = {str(path.relative_to(self.config.state)): _identity(path) for path in objects}
        # A clsact stays: others may use it by now.
        others = frozenset(found for found in qdiscs(self.netlink) if found[1] != "clsact")
        return State(take(self.node), others, files, dangerous_descriptors())

    def pin(self, name: str) -> Path:
        return self.config.globals / name

    def leftovers(self) -> list[str]:
        """Return the pins that only a reload under way may have."""
        return sorted(name for name in os.listdir(self.config.globals) if ":" in name and RETIRED not in name)

    def attached(self, ifname: str, direction: Direction) -> tuple[Filter, ...]:
        return hooks.filters(self.netlink, self.netlink.ifindex(ifname), direction)

    def dead_calls(self) -> list[str]:
        """Return the attached programs and policy programs with a calls map in which nothing is left.

        A packet that meets such a program is lost. What the kernel empties it empties a little after the last pin went.
        """
        now = take(self.node)
        programs = {f.program_id: f"{f.name} {f.direction}" for found in now.filters.values() for f in found}
        for where, slots_of in (("", now.policy), *now.retired.items()):
            programs |= {ident: f"policy program of endpoint {number} {where}" for number, ident in slots_of.items()}
        dead = []
        for ident, name in programs.items():
            for map_id in program_maps(ident):
                if slots(map_id) == {}:
                    dead.append(f"{name}: map {map_id}")
        return dead

    def _nothing_left(self, before: list[str]) -> None:
        now = descriptors()
        assert len(now) <= len(before), f"descriptors left open: {sorted(set(now) - set(before))}"
        assert [name for name in now if "bpf" in name] == [name for name in before if "bpf" in name]

    def _configuration(self, templates: Path, **changes: Any) -> DatapathConfig:
        return replace(self.node.datapath_config(), shared_templates=templates, **changes)

    def _fill(self, new: Map) -> None:
        self.new_maps.append(new.name)
        if new.info.type in (MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE, MapType.PERCPU_HASH):
            for number in range(self.entries):
                self.on_entry()
                # Of a trie the word is the length of the prefix.
                new.update(struct.pack("=I", number).ljust(new.info.key_size, b"\0"), b"\1" * new.value_bytes)


def calls_of(rig: Rig, ifname: str) -> set[int]:
    """Return the ids of the calls maps that the programs of an interface use."""
    attached = (*rig.attached(ifname, Direction.INGRESS), *rig.attached(ifname, Direction.EGRESS))
    return {m for f in attached for m in program_maps(f.program_id) if slots(m) is not None}


def fails_unchanged(
    rig: Rig, error: type[Exception], subject: str = "pod-1", *, routes: bool = False, gate: Observer | None = None
) -> str:
    """Reload a subject, which must fail and change nothing; return the message."""
    before = rig.state()
    with pytest.raises(error) as info:
        rig.reload(subject, routes=routes, observer=gate)
    assert before.differences(rig.state()) == []
    return str(info.value)


@contextmanager
def rig(
    templates: Path, *, changes: dict[str, Any] | None = None, size: str = registry.DEFAULT_SIZE, **spec: Any
) -> Iterator[Rig]:
    """Make a node with a loader; `spec` are fields of NodeSpec, `changes` fields of DatapathConfig."""
    name = f"rig-{uuid.uuid4().hex[:8]}"
    with Node(NodeSpec(name, **spec), size=size) as node, Rig(node, templates, **(changes or {})) as made:
        yield made


def _identity(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_ino, info.st_size

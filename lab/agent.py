"""Stands in for Cilium's control plane: fills the maps from the topology, and has the endpoints reloaded."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datapath.endpoint import HEALTH_ID, HOST_ID, WORLD_ID, Endpoint
from datapath.errors import ReloadlabError
from datapath.headers import template_endpoint
from datapath.loader import Loader
from datapath.maps import Map, load_maps, open_pin
from datapath.outcome import Outcome
from datapath.plan import Plan
from datapath.plans import OVERLAY_SUBJECT
from datapath.transaction import Observer
from lab import layouts
from lab.errors import system_errors
from lab.node import Node, UnknownTarget
from lab.topology import HEALTH, HOST, PodFacts
from lab.workers import fork_map

Change = Callable[[Plan], Plan]
"""A loader with a difference: what a plan becomes before it is applied."""

WORLD4, WORLD6 = (IPv4Address(0), 0), (IPv6Address(0), 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """A reload that failed; the old state lives on."""

    subject: str
    error: ReloadlabError


class Agent:
    """The control plane of one node; a context manager around its loader.

    `defines` are further macros for every program, as -D options; `library` the C sources, ours by default, `clang` the
    compiler. `change` is applied to every plan: a faulty loader for those who want to see it caught.
    """

    def __init__(
        self,
        node: Node,
        *,
        library: Path | None = None,
        clang: str | None = None,
        defines: Sequence[tuple[str, str]] = (),
        verifiers: int | None = None,
        filter_priority: int = 1,
        on_compile: Callable[..., None] | None = None,
    ) -> None:
        self.node = node
        config = node.datapath_config(library=library, clang=clang)
        self.config = replace(config, defines=tuple(defines), filter_priority=filter_priority)
        self.loader = Loader(self.config, verifiers=verifiers, on_new_map=self._fill, on_compile=on_compile)
        self.change: Change | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.node.lock_shared())
            stack.enter_context(self.loader)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @property
    def subjects(self) -> tuple[str, ...]:
        """What can be reloaded, in the order of an agent's start: the host before the overlay before the pods."""
        return (*self.node_subjects, HEALTH, *(pod.name for pod in self.node.pods))

    @property
    def node_subjects(self) -> tuple[str, ...]:
        """Those that belong to the node itself; without a tunnel there is no overlay."""
        return (HOST, OVERLAY_SUBJECT) if self.node.spec.tunnel else (HOST,)

    def check(self, *names: str) -> None:
        """Raise UnknownTarget for a name that is none of `subjects`."""
        for name in names:
            if name not in self.subjects:
                raise UnknownTarget(self.node.name, f"endpoint {name}", self.subjects)

    @property
    def endpoint_routes(self) -> bool:
        return self.config.node.endpoint_routes

    def configure(self, **changes: Any) -> None:
        """Change fields of the datapath's configuration; they take effect with the next reload."""
        self.config = replace(self.config, **changes)
        self.loader.configure(self.config)

    def start(self, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Fill the shared maps and reload everything once; the first failure is raised."""
        self.sync(cancel=cancel)
        return self.reload_all(workers=workers, cancel=cancel)

    def sync(self, *, cancel: threading.Event | None = None) -> None:
        """Create the maps that the control plane writes, as the host's object defines them, and fill them."""
        spec = self.loader.templates.fetch(self.endpoint(HOST), cancel=cancel).image.spec
        mine = {name: item for name, item in spec.maps.items() if item.pinned and name in _CONTENTS}
        maps = load_maps(replace(spec, maps=mine, programs={}), self.config.globals)
        try:
            for item in maps.maps.values():
                self._fill(item)
        finally:
            maps.close()

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint as it would be reloaded now."""
        found = self.node.endpoint(name)
        return found if found.is_host else found.with_endpoint_routes(self.endpoint_routes)

    def plan(self, subject: str, *, generation: int = 0) -> Plan:
        """Return the plan of the next reload of `subject`; nothing is done."""
        if subject == OVERLAY_SUBJECT:
            return self.loader.plan_overlay(generation)
        return self.loader.plan(replace(self.endpoint(subject), generation=generation), subject=subject)

    def reload(
        self,
        subject: str,
        *,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Outcome:
        """Reload one endpoint, the host or the overlay, under a generation number of its own."""
        plan = self.plan(subject, generation=self.next_generation())
        plan = self.change(plan) if self.change is not None else plan
        with system_errors(self.node.name):
            return self.loader.apply(plan, observer=observer, cancel=cancel)

    def reload_many(
        self,
        subjects: Iterable[str],
        *,
        workers: int,
        cancel: threading.Event | None = None,
        on_worker: Callable[[int], object] | None = None,
    ) -> list[Outcome | Failure]:
        """Reload by `workers` processes, or here if that is one; one failure does not keep the others from it.

        A worker has its own copy of this agent: what `change` notes in a variable stays there. `on_worker` is called in
        each, with its process id, before it begins.
        """
        names = list(subjects)
        workers = min(workers, len(names))
        if workers <= 1:
            return [self._attempt(name, cancel) for name in names]
        self._prepare(names, cancel)

        @contextmanager
        def worker(cancelled: threading.Event) -> Iterator[Callable[[str], Outcome | Failure]]:
            if on_worker is not None:
                on_worker(os.getpid())
            spare = len(os.sched_getaffinity(0)) // workers
            with self.loader.inherited(verifiers=max(spare, 1)) as self.loader:
                yield lambda name: self._attempt(name, cancelled)

        results = fork_map(worker, names, workers=workers, cancel=cancel)
        return [
            Failure(name, result) if isinstance(result, ReloadlabError) else result
            for name, result in zip(names, results, strict=True)
        ]

    def _attempt(self, subject: str, cancel: threading.Event | None) -> Outcome | Failure:
        try:
            return self.reload(subject, cancel=cancel)
        except ReloadlabError as error:
            return Failure(subject, error)

    def _prepare(self, subjects: Sequence[str], cancel: threading.Event | None) -> None:
        """Have everything at hand that workers can inherit: the templates, compiled and parsed once for all."""
        endpoints = (self.endpoint(name) for name in subjects if name != OVERLAY_SUBJECT)
        for template in {template_endpoint(endpoint) for endpoint in endpoints}:
            # A source that does not compile is the failure of each reload that needs it.
            with suppress(ReloadlabError):
                self.loader.templates.fetch(template, cancel=cancel)
        self.loader.rest()

    def reload_all(self, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Reload the host and the overlay, then the endpoints in parallel; the first failure is raised at the end."""
        first = [self.reload(subject, cancel=cancel) for subject in self.node_subjects]
        rest = self.reload_many(self.subjects[len(first) :], workers=workers, cancel=cancel)
        for result in rest:
            if isinstance(result, Failure):
                raise result.error
        return first + [result for result in rest if isinstance(result, Outcome)]

    def set_endpoint_routes(
        self, on: bool, *, workers: int = 1, cancel: threading.Event | None = None
    ) -> list[Outcome]:
        """Switch a live node to the other routing mode, without a moment in which a pod has no route.

        The node's route to its pods stays until the last pod has one of its own, and is back before the first loses it.
        """
        if not on:
            self.node.set_node_route(True)
        self.configure(node=replace(self.config.node, endpoint_routes=on))
        outcomes = self.reload_all(workers=workers, cancel=cancel)
        self.node.set_endpoint_routes(on)
        return outcomes

    def add_pod(self, name: str) -> Outcome:
        """Make one more pod, tell the maps about it, and load its programs."""
        self.node.add_pod(name)
        self.sync()
        return self.reload(name)

    def remove_pod(self, name: str) -> None:
        """Take a pod away: out of the datapath first, then out of the node."""
        pod = self.node.pod(name)
        self.loader.unload(self.endpoint(name), forget=lambda: self._forget(pod))
        self.node.remove_pod(name)

    def _forget(self, pod: PodFacts) -> None:
        for address in (pod.ipv4, pod.ipv6):
            for name, key in (
                ("cilium_lxc", layouts.endpoint_key(address)),
                ("cilium_ipcache", layouts.ipcache_key(address, address.max_prefixlen)),
            ):
                with open_pin(self.config.globals / name) as pinned:
                    pinned.delete(key.ljust(pinned.info.key_size, b"\0"))

    def next_generation(self) -> int:
        """Return the number of the next load on this node; no two loads have the same, in whatever process."""
        path = self.config.state / "generation"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            number = int(file.read() or "1") + 1
            file.seek(0)
            file.write(str(number))
            file.truncate()
            file.flush()
            # A process that was forked meanwhile may have the descriptor too, and would keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)
        return number

    def _fill(self, target: Map) -> None:
        """Write what the control plane knows into a map that is new."""
        name = target.name.rstrip("0123456789")
        contents = _CONTENTS.get(name)
        if contents is None:
            return
        for key, value in contents(self.node):
            # A build may have appended words to key or value: they are zero.
            padded = value.ljust(target.info.value_size, b"\0")
            target.update(key.ljust(target.info.key_size, b"\0"), padded)


Entries = Iterable[tuple[bytes, bytes]]


def _endpoints(node: Node) -> Entries:
    """Return cilium_lxc: every local pod, and the addresses of the host."""
    for pod in (node.facts.health, *node.pods):
        info = layouts.EndpointInfo(
            ifindex=pod.ifindex, lxc_id=pod.endpoint_id, flags=0, mac=pod.mac, node_mac=pod.node_mac
        )
        for address in (pod.ipv4, pod.ipv6):
            yield layouts.endpoint_key(address), info.pack()
    host = layouts.EndpointInfo(ifindex=0, lxc_id=0, flags=layouts.ENDPOINT_F_HOST, mac=None, node_mac=None)
    for address in _host_addresses(node):
        yield layouts.endpoint_key(address), host.pack()


def _identities(node: Node) -> Entries:
    """Return cilium_ipcache: who is behind an address; the world is behind all others."""
    known = [(address, address.max_prefixlen, HOST_ID) for address in _host_addresses(node)]
    for pod in (node.facts.health, *node.pods):
        identity = HEALTH_ID if pod.name == HEALTH else pod.identity
        known += [(address, address.max_prefixlen, identity) for address in (pod.ipv4, pod.ipv6)]
    known += [(*world, WORLD_ID) for world in (WORLD4, WORLD6)]
    for address, length, identity in known:
        info = layouts.RemoteEndpointInfo(sec_identity=identity, tunnel_endpoint=IPv4Address(0))
        yield layouts.ipcache_key(address, length), info.pack()


def _allow_all(_: Node) -> Entries:
    """Return a policy map that lets everything pass, in both directions."""
    for egress in (False, True):
        yield layouts.policy_key_any(egress=egress), layouts.POLICY_ENTRY_ALLOW


def _host_addresses(node: Node) -> tuple[IPv4Address | IPv6Address, ...]:
    spec = node.spec
    return spec.router4, spec.router6, spec.node4.ip, spec.node6.ip


_CONTENTS: dict[str, Callable[[Node], Entries]] = {
    "cilium_lxc": _endpoints,
    "cilium_ipcache": _identities,
    "cilium_policy_": _allow_all,
}

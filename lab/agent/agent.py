"""Stands in for Cilium's control plane: fills the maps from the topology, and has the endpoints reloaded."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datapath.build.headers import template_endpoint
from datapath.endpoint import Endpoint
from datapath.errors import ReloadlabError
from datapath.load.maps import Map, load_maps, open_pin
from datapath.loader import Loader
from datapath.object.spec import CollectionSpec
from datapath.reload.outcome import Outcome
from datapath.reload.plans import OVERLAY_SUBJECT
from datapath.reload.step import Plan
from datapath.reload.transaction import Observer
from lab.abi import layouts
from lab.agent import contents, enforcement
from lab.agent.collector import Collected, collect
from lab.agent.generations import next_generation
from lab.agent.policyfile import parse
from lab.agent.turns import Turn
from lab.errors import system_errors
from lab.node.node import Node, UnknownTarget
from lab.node.topology import HEALTH, HOST, InvalidSpec, PodFacts, PodSpec
from lab.system.forkpool import fork_map
from lab.system.limits import descriptors_of, require_descriptors

Change = Callable[[Plan], Plan]
"""A loader with a difference: what a plan becomes before it is applied."""

_POLICY_MAP = "cilium_policy_"


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
        self.loader = Loader(self.config, verifiers=verifiers, on_new_map=self._on_new_map, on_compile=on_compile)
        self.change: Change | None = None
        self._stack = ExitStack()
        self._maps_holders: list[int] = []
        # Shared by reloads, exclusively held by whoever changes what all programs of the node are built for.
        self._mode = Turn(self.config.state / "mode.lock")
        self._seen, self._known = (node.spec, node.facts), config.node

    def __enter__(self) -> Self:
        pods = len(self.node.pods)
        require_descriptors(descriptors_of(pods), f"lab {self.node.name} with {pods} pods")
        with ExitStack() as stack:
            stack.enter_context(self.node.lock_shared())
            self.node.recover()
            self._refresh()
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

    @contextmanager
    def updating(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Keep all others away who would change this node's maps, in whatever process: updates and reloads.

        It may be nested. In a thread that is reloading, at a gate say, it takes no lock: it would wait for itself.
        """
        with ExitStack() as stack:
            if threading.get_ident() not in self._maps_holders:
                # Nobody waits for the compiler but us.
                self._host_spec(cancel)
                stack.enter_context(self.loader.lock_maps(cancel=cancel))
                self._refresh()
            stack.enter_context(self._holding_maps())
            yield

    @contextmanager
    def _switching(self, cancel: threading.Event | None) -> Iterator[None]:
        """Keep away all others who would reload or switch this node, while everything is reloaded for a new mode."""
        with self._mode.take(exclusive=True, cancel=cancel):
            self._refresh()
            yield

    def _refresh(self) -> None:
        """Know what others have changed of the node: its pods, and what its programs are built for."""
        self.node.refresh()
        seen = (self.node.spec, self.node.facts)
        if seen[0] is self._seen[0] and seen[1] is self._seen[1]:
            return
        known, now = self._known, self.node.datapath_config().node
        self._seen, self._known = seen, now
        # Only those: the others may have been configured otherwise on purpose.
        changed = {f.name: getattr(now, f.name) for f in fields(now) if getattr(now, f.name) != getattr(known, f.name)}
        if changed:
            self.configure(node=replace(self.config.node, **changed))

    @contextmanager
    def _holding_maps(self) -> Iterator[None]:
        self._maps_holders.append(threading.get_ident())
        try:
            yield
        finally:
            self._maps_holders.remove(threading.get_ident())

    def _host_spec(self, cancel: threading.Event | None) -> CollectionSpec:
        return self.loader.templates.fetch(self.endpoint(HOST), cancel=cancel).image.spec

    def sync(self, *, cancel: threading.Event | None = None) -> None:
        """Bring maps and routes in line with what is declared, of this node and of the others of its cluster.

        Maps that are missing are created as the host's object defines them. What is new is written before what is
        stale goes, so that no packet finds less than before or after (cilium#10936).
        """
        with self.updating(cancel=cancel):
            self._sync(self._host_spec(cancel))

    def _sync(self, spec: CollectionSpec) -> None:
        mine = {name: item for name, item in spec.maps.items() if item.pinned and name in contents.NODE_MAPS}
        with ExitStack() as stack:
            maps = load_maps(replace(spec, maps=mine, programs={}), self.config.globals, fill=self._on_new_map)
            stack.callback(maps.close)
            policies = enforcement.stored(self.node)
            update = None
            if policies is not None:
                update = stack.enter_context(enforcement.PolicyUpdate(self.node, self.config.globals, policies))
                update.add()
            for item in maps.maps.values():
                written = self._fill(item)
                for key in [key for key in item.keys() if key not in written]:  # noqa: SIM118 - a map of the kernel
                    item.delete(key)
            if update is not None:
                update.remove()
        self.node.sync_routes()

    def apply_policies(self, document: object, *, cancel: threading.Event | None = None) -> None:
        """Let these policies hold from now on, instead of all others: all of them, or none.

        `document` is what lab.policyfile.parse takes; an empty list lets everything pass. Raises PolicyError,
        UnknownTarget, PolicyMapFull.
        """
        enforcement.check(self.node, parse(document))
        with self.updating(cancel=cancel):
            before = enforcement.document_of(self.node)
            enforcement.store(self.node, document)
            try:
                self.sync(cancel=cancel)
            except BaseException:
                enforcement.store(self.node, before)
                raise

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
        """Reload one endpoint, the host or the overlay, under a generation number of its own.

        It waits for whoever switches the whole node to another mode.
        """
        with self._mode.take(exclusive=False, cancel=cancel):
            self._refresh()
            plan = self.plan(subject, generation=self.next_generation())
            plan = self.change(plan) if self.change is not None else plan
            with system_errors(self.node.name), self._holding_maps():
                return self.loader.apply(plan, observer=observer, cancel=cancel)

    def reload_many(
        self,
        subjects: Iterable[str],
        *,
        workers: int,
        cancel: threading.Event | None = None,
        on_worker: Callable[[int], object] | None = None,
        observer: Observer | None = None,
    ) -> list[Outcome | Failure]:
        """Reload by `workers` processes, or here if that is one; one failure does not keep the others from it.

        `observer` looks on at what is done here.

        A worker has its own copy of this agent: what `change` notes in a variable stays there. `on_worker` is called in
        each, with its process id, before it begins.
        """
        names = list(subjects)
        workers = min(workers, len(names))
        if workers <= 1:
            return [self._attempt(name, cancel, observer) for name in names]
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

    def _attempt(
        self, subject: str, cancel: threading.Event | None, observer: Observer | None = None
    ) -> Outcome | Failure:
        try:
            return self.reload(subject, observer=observer, cancel=cancel)
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

    def reload_all(
        self,
        *,
        workers: int = 1,
        first: Sequence[str] = (),
        last: Sequence[str] = (),
        cancel: threading.Event | None = None,
        observer: Observer | None = None,
    ) -> list[Outcome]:
        """Reload the host and the overlay, then the endpoints in parallel; the first failure is raised when they are.

        `first` is what comes even before the host, `last` what waits for the endpoints.
        """
        order = [name for name in dict.fromkeys((*first, *self.node_subjects)) if name not in last]
        done = [self.reload(subject, observer=observer, cancel=cancel) for subject in order]
        endpoints = [name for name in self.subjects if name not in (*order, *last)]
        rest = self.reload_many(endpoints, workers=workers, cancel=cancel, observer=observer)
        for result in rest:
            if isinstance(result, Failure):
                raise result.error
        done += [result for result in rest if isinstance(result, Outcome)]
        return done + [self.reload(subject, observer=observer, cancel=cancel) for subject in last]

    def set_endpoint_routes(
        self,
        on: bool,
        *,
        workers: int = 1,
        cancel: threading.Event | None = None,
        observer: Observer | None = None,
    ) -> list[Outcome]:
        """Switch a live node to the other routing mode, without a moment in which a pod has no route.

        The node's route to its pods stays until the last pod has one of its own, and is back before the first loses it.
        With endpoint routes the tunnel's program leaves the policy to the pods' egress programs: it comes last then.
        """
        with self._switching(cancel):
            if not on:
                self.node.set_node_route(True)
            self.configure(node=replace(self.config.node, endpoint_routes=on))
            last = [name for name in self.node_subjects if name == OVERLAY_SUBJECT and on]
            outcomes = self.reload_all(workers=workers, last=last, cancel=cancel, observer=observer)
            self.node.set_endpoint_routes(on)
        return outcomes

    def set_tunnel_port(self, port: int, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Move the tunnel to another UDP port: a new device, and programs that know its index.

        Until all is reloaded nothing goes through the tunnel: the kernel cannot change the port of a device.
        """
        if not self.node.spec.tunnel:
            raise InvalidSpec(f"{self.node.name} has no tunnel")
        with self._switching(cancel):
            self.node.set_tunnel_port(port)
            # The new device first: the others' packets arrive there already.
            return self.reload_all(workers=workers, first=[OVERLAY_SUBJECT], cancel=cancel)

    def set_mtu(self, mtu: int, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Change the MTU of a live node, in place; open connections go on."""
        with self._switching(cancel):
            self.node.set_mtu(mtu)
            return self.reload_all(workers=workers, cancel=cancel)

    def add_pod(self, pod: PodSpec | str) -> Outcome:
        """Make one more pod, tell the maps about it, and load its programs."""
        made = self.node.add_pod(pod)
        self.sync()
        return self.reload(made.name)

    def remove_pod(self, name: str) -> None:
        """Take a pod away: out of the datapath first, then out of the node."""
        with self._mode.take(exclusive=False), ExitStack() as updating:
            self._refresh()
            pod = self.node.pod(name)

            def forget() -> None:
                # The endpoint comes before the maps, as in a reload.
                updating.enter_context(self.updating())
                self.node.pod(name)  # UnknownTarget if another has removed it meanwhile
                self._forget(pod)

            self.loader.unload(self.endpoint(name), forget=forget)
            self.forget_connections(pod)
            self.node.remove_pod(name)

    def collect_connections(self) -> tuple[Collected, ...]:
        """Delete the connections whose lifetime is over; what was found in each of the maps that are there."""
        return collect(self.config.globals)

    def forget_connections(self, pod: PodFacts) -> None:
        """Delete a pod's connections: whoever gets its addresses next would inherit them, whose answers always pass."""
        collect(self.config.globals, of={pod.ipv4, pod.ipv6})

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
        return next_generation(self.config.state / "generation")

    def _on_new_map(self, target: Map) -> None:
        self._fill(target)

    def _fill(self, target: Map) -> frozenset[bytes]:
        """Write what the control plane knows into a map, which may be new; return the keys."""
        entries: contents.Entries = ()
        if target.name.startswith(_POLICY_MAP):
            entries = contents.policy(self.node, int(target.name.removeprefix(_POLICY_MAP)))
        elif target.name in contents.NODE_MAPS:
            entries = contents.NODE_MAPS[target.name](self.node)
        written = set()
        for key, value in entries:
            # A build may have appended words to key or value: they are zero.
            padded = key.ljust(target.info.key_size, b"\0")
            target.update(padded, value.ljust(target.info.value_size, b"\0"))
            written.add(padded)
        return frozenset(written)

"""Reloads what a node has: one endpoint, many of them, or all in the order of an agent's start.

It also excludes what must not happen at the same time, in whatever process: reloads, updates of the maps, and switches
of the whole node.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from bpf import is_ours
from datapath.endpoint import Attachment, DatapathConfig, Endpoint
from datapath.errors import Cancelled, ReloadlabError
from datapath.kernel.map import Map
from datapath.kernel.tcx import chosen
from datapath.loader import Loader
from datapath.object.spec import CollectionSpec
from datapath.reload.outcome import Outcome
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from datapath.reload.step import Plan
from datapath.reload.transaction import Observer, Observers, OnFailure
from lab.agent import mapfill
from lab.agent.generations import next_generation
from lab.agent.many import ManyReloads
from lab.agent.reloads import Failure
from lab.agent.subjectlock import lock_subject
from lab.agent.turns import Turn
from lab.agent.unchecked import PodsUnchecked, unchecked_pods
from lab.errors import system_errors
from lab.loaders import protocol
from lab.loaders.client import LoaderClient
from lab.loaders.command import BUILTIN, LoaderCommand
from lab.loaders.plan import loader_plan
from lab.loaders.requests import describe_node, unload_request
from lab.node.hostmark import set_host_mark
from lab.node.node import Node, UnknownTarget
from lab.node.topology import HEALTH, HOST, NODE
from lab.system.cache import cache_directory
from lab.system.limits import descriptors_of, require_descriptors

Change = Callable[[Plan], Plan]
"""Turns a plan into the plan that is applied in its place."""

KINDS_OF_SUBJECTS = {HOST: protocol.HOST, OVERLAY_SUBJECT: protocol.OVERLAY, XDP_SUBJECT: XDP_SUBJECT}
"""What a subject is to a loader, if it is no pod. XDP is for ours alone."""


class NestedReload(ReloadlabError):
    """A reload that was asked for at a gate of another reload by the same thread, which would wait for itself."""

    def __init__(self, subject: str, outer: str) -> None:
        super().__init__(f"{subject} cannot be reloaded at a gate of {outer}'s reload: do it after")
        self.subject = subject
        self.outer = outer


class Reloader:
    """A context manager around the loader of one node.

    `all_programs` loads those that nothing reaches as well. Files below the directories `gated` are calls of the gates
    too.
    `defines` are further macros for every program, as -D options; `library` the C sources, ours by default, `clang` the
    compiler, `templates` a directory that nodes share, so that each template is compiled once for all of them. `change`
    is applied to every plan: so a test can give the agent a faulty loader. `on_outcome` hears of every reload that
    succeeds and `on_failure` of every one that fails in a step, whichever process does it. `on_reload` is asked before
    each reload in this process for one more observer of it.

    With `loader`, that command loads the programs, not our own pipeline (`external` is its client then); what
    kinds it does not support are loaded by ours, and counted in `not_supported`, as reloads with macros that it does
    not know; what nobody else can do for it is NotSupported, and stays in `refused`.
    """

    def __init__(
        self,
        node: Node,
        *,
        library: Path | None = None,
        clang: str | None = None,
        templates: Path | None = None,
        defines: Sequence[tuple[str, str]] = (),
        verifiers: int | None = None,
        filter_priority: int = 1,
        on_compile: Callable[..., None] | None = None,
        loader: LoaderCommand | None = None,
        attach: Attachment = Attachment.TC,
        all_programs: bool = False,
        gated: Sequence[Path] = (),
    ) -> None:
        self.node = node
        self.gated = tuple(gated)
        config = node.datapath_config(library=library, clang=clang)
        self.config = replace(
            config,
            defines=tuple(defines),
            filter_priority=filter_priority,
            shared_templates=templates,
            object_cache=cache_directory(),
            attach=chosen(attach),
            all_programs=all_programs,
        )
        self.loader = Loader(self.config, verifiers=verifiers, on_new_map=self._fill, on_compile=on_compile)
        self.external = None if loader is None else LoaderClient(loader, self._describe)
        self.not_supported = Counter[str]()
        self.refused: list[protocol.NotSupported] = []
        self.change: Change | None = None
        self.on_outcome: Callable[[Outcome], object] | None = None
        self.on_failure: OnFailure | None = None
        self.on_reload: Callable[[Plan], Observer | None] | None = None
        self._on_start: Callable[[int], object] | None = None
        self._stack = ExitStack()
        self._maps_holders: list[int] = []
        self._reloads: dict[int, str] = {}
        # Shared by reloads, held exclusively while a setting changes that all programs of the node are built with.
        self._mode = Turn(self.config.state / "mode.lock")
        self._seen, self._known = (node.spec, node.facts), (config.node, config.xdp)

    def __enter__(self) -> Self:
        pods = len(self.node.pods)
        require_descriptors(descriptors_of(pods), f"lab {self.node.name} with {pods} pods")
        with ExitStack() as stack:
            stack.enter_context(self.node.lock_shared())
            self.node.recover()
            self._refresh()
            if not is_ours(self.config.library):
                set_host_mark(self.node.netns(NODE))
            stack.enter_context(self.loader)
            if self.external is not None:
                stack.enter_context(self.external)
                self._check_attachment(self.external)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.pop_all().__exit__(kind, value, tb)

    def _check_attachment(self, external: LoaderClient) -> None:
        """Raise NotSupported if the loader does not attach as it should."""
        if self.config.datapath_mode != "veth":
            raise protocol.NotSupported(external.name, "pods with netkit devices")
        if self.config.attach is Attachment.TCX and not external.supports(protocol.TCX):
            raise protocol.NotSupported(external.name, "tcx")

    def close(self) -> None:
        """End: let go of everything that is kept between reloads. The node runs on. A second call does nothing."""
        self._stack.close()

    @property
    def subjects(self) -> tuple[str, ...]:
        """What can be reloaded, in the order of an agent's start: XDP, the host, the overlay, the pods."""
        return (*self.node_subjects, HEALTH, *(pod.name for pod in self.node.pods))

    @property
    def node_subjects(self) -> tuple[str, ...]:
        """The subjects that belong to the node itself; without a tunnel it has no overlay."""
        xdp = (XDP_SUBJECT,) if self.config.xdp is not None else ()
        return (*xdp, HOST, OVERLAY_SUBJECT) if self.node.spec.tunnel else (*xdp, HOST)

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

    @contextmanager
    def reloading(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Exclude switches of this node, and read its present state."""
        with system_errors(self.node.name), self._mode.take(exclusive=False, cancel=cancel):
            self._refresh()
            yield

    @contextmanager
    def updating(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Exclude updates and reloads, in whatever process, that would change this node's maps.

        It may be nested. In a thread that is reloading, at a gate say, it takes no lock: it would wait for itself.
        """
        with system_errors(self.node.name), ExitStack() as stack:
            if threading.get_ident() not in self._maps_holders:
                # Nobody waits for the compiler but us.
                self.host_spec(cancel=cancel)
                stack.enter_context(self.loader.lock_maps(cancel=cancel))
                self._refresh()
            stack.enter_context(self._holding_maps())
            yield

    @contextmanager
    def switching(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Exclude reloads and switches by others, while everything is reloaded for a new mode.

        Cancelled if `cancel` is set by the time it is this one's turn: the node has not been changed yet.
        """
        with system_errors(self.node.name), self._mode.take(exclusive=True, cancel=cancel):
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"cancelled before anything of {self.node.name} was changed")
            self._refresh()
            yield
            # Whoever switches it next changes what this one has made of it.
            self._refresh()

    def _refresh(self) -> None:
        """Know what others have changed of the node: its pods, and what its programs are built for."""
        self.node.refresh()
        seen = (self.node.spec, self.node.facts)
        if seen[0] is self._seen[0] and seen[1] is self._seen[1]:
            return
        (known, xdp), config = self._known, self.node.datapath_config()
        now = config.node
        self._seen, self._known = seen, (now, config.xdp)
        # Only those: the others may have been configured otherwise on purpose.
        changed = {f.name: getattr(now, f.name) for f in fields(now) if getattr(now, f.name) != getattr(known, f.name)}
        if changed:
            self.configure(node=replace(self.config.node, **changed))
        if config.xdp != xdp:
            self.configure(xdp=config.xdp)

    @contextmanager
    def _holding_maps(self) -> Iterator[None]:
        self._maps_holders.append(threading.get_ident())
        try:
            yield
        finally:
            self._maps_holders.remove(threading.get_ident())

    def host_spec(self, *, cancel: threading.Event | None = None) -> CollectionSpec:
        """Return what the host's object defines, compiled if it must be."""
        return self.loader.templates.fetch(self.endpoint(HOST), cancel=cancel).image.spec

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint as it would be reloaded now."""
        found = self.node.endpoint(name)
        return found if found.is_host else found.with_endpoint_routes(self.endpoint_routes)

    def plan(self, subject: str, *, generation: int = 0) -> Plan:
        """Return the plan of the next reload of `subject`, as `change` makes it; nothing is done."""
        if subject == OVERLAY_SUBJECT:
            plan = self.loader.plan_overlay(generation)
        elif subject == XDP_SUBJECT:
            plan = self.loader.plan_xdp(generation)
        else:
            endpoint = replace(self.endpoint(subject), generation=generation)
            plan = self.loader.plan(endpoint, subject=subject, down=subject in self.node.facts.unloaded)
        given = self._by_external(plan)
        if self.change is None:
            return given
        changed = self.change(given)
        if given is not plan and changed == given and self.change(plan) != plan:
            self.refuse("a fault that is put into the plan of our own pipeline")
        return changed

    def _by_external(self, plan: Plan) -> Plan:
        """Return the plan of the loader that does it: ours, unless another one supports it."""
        external, kind = self.external, KINDS_OF_SUBJECTS.get(plan.subject, protocol.POD)
        if external is None or not external.supports(kind):
            return plan
        if self.endpoint_routes and kind == protocol.POD:
            self.require(protocol.ENDPOINT_ROUTES, "endpoint routes")
        return loader_plan(plan, external, self.config)

    def loads_itself(self, subjects: Iterable[str] = ()) -> bool:
        """Tell whether our own pipeline loads some of these, or of all, and not another loader."""
        external, names = self.external, tuple(subjects) or self.subjects
        kinds = {KINDS_OF_SUBJECTS.get(name, protocol.POD) for name in names}
        return external is None or not all(external.supports(kind) for kind in kinds)

    def unload(self, name: str, *, forget: Callable[[], object], discard: Callable[[], object]) -> None:
        """Take a pod out of the datapath; `forget` is where the control plane drops its own entries.

        `discard` removes the pod, before somebody else can have its lock.
        """
        self.unload_endpoint(self.endpoint(name), name, forget=forget, discard=discard)

    def unload_endpoint(
        self,
        endpoint: Endpoint,
        name: str,
        *,
        forget: Callable[[], object],
        discard: Callable[[], object] | None = None,
    ) -> None:
        """Do the same with an endpoint that the node may have no more; `name` is what a loader is told."""
        external = self.external
        if external is None:
            self.loader.unload(endpoint, forget=forget, discard=discard)
            return
        self.require(protocol.UNLOAD, "the removal of a pod's programs")
        request = unload_request(self.config, name, endpoint)
        self.loader.unload(endpoint, forget=forget, detach=lambda: external.ask(request), discard=discard)

    def require(self, ability: str, what: str) -> None:
        """Raise NotSupported for what needs an ability that the loader has not declared; ours has all of them."""
        if self.external is not None and not self.external.supports(ability):
            self.refuse(what)

    def refuse(self, what: str) -> NoReturn:
        """Raise NotSupported for something that the loader does not do."""
        error = protocol.NotSupported(BUILTIN if self.external is None else self.external.name, what)
        self.refused.append(error)
        raise error

    def _describe(self) -> tuple[DatapathConfig, dict[str, Any]]:
        """Return what a loader that is not ours is told of the node."""
        return self.config, describe_node(self.node, self.config)

    @contextmanager
    def as_worker(
        self, *, verifiers: int | None, patience: float = 1.0, on_start: Callable[[int], object] | None = None
    ) -> Iterator[None]:
        """Be the copy of a reloader in a forked process, with a loader of its own (LoaderClient.inherited)."""
        with ExitStack() as stack:
            self.loader = stack.enter_context(self.loader.inherited(verifiers=verifiers))
            self._on_start = on_start
            if self.external is not None:
                self.external = stack.enter_context(self.external.inherited(patience=patience, on_start=on_start))
            yield

    @contextmanager
    def loading_with(self, loader: LoaderCommand | None) -> Iterator[None]:
        """Have another loader load meanwhile, in a process of its own; None: our own pipeline.

        For the copy of a reloader in a forked process, where nobody else reloads.
        """
        before = self.external
        with ExitStack() as stack:
            self.external = None
            if loader is not None:
                client = LoaderClient(loader, self._describe, on_start=self._on_start)
                self._check_attachment(stack.enter_context(client))
                self.external = client
            try:
                yield
            finally:
                self.external = before

    def reload(
        self,
        subject: str,
        *,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Outcome:
        """Reload one endpoint, the host, the overlay or XDP, under a generation number of its own.

        It waits while another process switches the whole node to another mode. NestedReload at a gate of a reload.
        With endpoint routes, PodsUnchecked for the overlay while a pod lacks its egress program.
        """
        with (
            self._not_nested(subject),
            system_errors(self.node.name),
            self._mode.take(exclusive=False, cancel=cancel),
            lock_subject(self.loader, self.node, subject, self._refresh, cancel),
        ):
            if subject == OVERLAY_SUBJECT and self.endpoint_routes and (pods := unchecked_pods(self.node)):
                raise PodsUnchecked(self.node.name, pods)
            # Now: another may have changed the endpoint, or removed it, while we waited for its lock.
            plan = self.plan(subject, generation=self.next_generation())
            watching = self._observers(plan, observer)
            with self._holding_maps():
                outcome = self.loader.apply_locked(plan, observer=watching, cancel=cancel, on_failure=self.on_failure)
            if subject in self.node.facts.unloaded:
                self._show(subject)
            self.tell(outcome)
            return outcome

    def _show(self, pod: str) -> None:
        """Let others find a pod that has its programs by now."""
        self.node.set_loaded(pod, True)
        with self.updating():
            mapfill.show_endpoints(self.node, self.config.globals)

    def _observers(self, plan: Plan, given: Observer | None) -> Observer | None:
        """Return who looks on at a reload: `given`, and before it what `on_reload` returns."""
        own = self.on_reload(plan) if self.on_reload is not None else None
        both = tuple(observer for observer in (own, given) if observer is not None)
        return Observers(both) if len(both) > 1 else both[0] if both else None

    @contextmanager
    def _not_nested(self, subject: str) -> Iterator[None]:
        """Refuse a reload from within a reload by the calling thread, which holds locks that the other would take."""
        thread = threading.get_ident()
        if thread in self._reloads:
            raise NestedReload(subject, self._reloads[thread])
        self._reloads[thread] = subject
        try:
            yield
        finally:
            del self._reloads[thread]

    @contextmanager
    def at_gate_of(self, subject: str) -> Iterator[None]:
        """Count the calling thread as the one that reloads `subject`, which a copy of this agent does (do_in_worker).

        That one waits meanwhile, with its locks. NestedReload within it, as at a gate of a reload in this process.
        """
        with self._not_nested(subject), self._holding_maps():
            yield

    def tell(self, outcome: Outcome) -> None:
        """Tell who listens that a reload has come to its end, and count what another loader has left to ours."""
        kind = KINDS_OF_SUBJECTS.get(outcome.subject, protocol.POD)
        if self.external is not None and not self.external.supports(kind):
            self.not_supported[f"{kind}: loaded by the built-in loader"] += 1
        elif self.external is not None and self.external.greeting.compiles and self.config.defines:
            self.not_supported["macros: it compiles by itself, and only the lab's maps are made with them"] += 1
        if self.on_outcome is not None:
            self.on_outcome(outcome)

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

        `observer` looks on at what is done here. The host waits for the others if it is about to lose its policy
        program, and is left alone (HostStillAsked) if one of them fails: the old programs go on to call that. The
        others wait for the host if it is about to get one, and are left alone (HostNotAsked) if it fails: the new
        programs would call what is not there. With endpoint routes the overlay waits for the pods.

        A worker has its own copy of this agent: what `change` notes in a variable stays there. `on_worker` is called in
        each, with its process id, before it begins.
        """
        return ManyReloads(self, workers, cancel, on_worker, observer).each(list(subjects))

    def reload_all(
        self,
        *,
        workers: int = 1,
        first: Sequence[str] = (),
        last: Sequence[str] = (),
        without: Container[str] = (),
        cancel: threading.Event | None = None,
        observer: Observer | None = None,
    ) -> list[Outcome]:
        """Reload what belongs to the node, then the endpoints in parallel; the first failure is raised when they are.

        `first` is what comes even before the host, `last` what waits for the endpoints; endpoints in `without` are left
        out. The host waits if it is about to lose its policy program, which the pods' programs call until they are
        reloaded; the overlay if the node has endpoint routes, because it leaves the policy to the pods' programs then.
        """
        many = ManyReloads(self, workers, cancel, observer=observer)
        return many.all(first=first, last=last, without=without)

    def next_generation(self) -> int:
        """Return the number of the next load on this node; no two loads have the same, in whatever process."""
        return next_generation(self.config.state / "generation")

    def _fill(self, target: Map) -> None:
        mapfill.fill(self.node, target)

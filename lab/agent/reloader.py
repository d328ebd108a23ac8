"""Reloads what a node has: one endpoint, many of them, or all in the order of an agent's start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self, Unpack

from bpf import is_ours
from datapath.reload.outcome import Outcome
from datapath.reload.plans import OVERLAY_SUBJECT
from datapath.reload.step import Plan
from datapath.reload.transaction import Observer, Observers, OnFailure
from lab.agent import mapfill
from lab.agent.loading import KINDS_OF_SUBJECTS, LoadedOptions
from lab.agent.many import ManyReloads
from lab.agent.planning import PlannedNode
from lab.agent.reloads import Failure
from lab.agent.unchecked import PodsUnchecked, unchecked_pods
from lab.loaders import protocol
from lab.node.hostmark import set_host_mark
from lab.node.node import Node
from lab.node.topology import NODE
from lab.system.limits import descriptors_of, require_descriptors


class Reloader(PlannedNode):
    """A context manager around the loader of one node; its options are those of ManagedNode and LoadedNode.

    `on_outcome` hears of every reload that succeeds and `on_failure` of every one that fails in a step, whichever
    process does it. `on_reload` is asked before each reload in this process for one more observer of it.
    """

    def __init__(self, node: Node, **options: Unpack[LoadedOptions]) -> None:
        super().__init__(node, **options)
        self.on_outcome: Callable[[Outcome], object] | None = None
        self.on_failure: OnFailure | None = None
        self.on_reload: Callable[[Plan], Observer | None] | None = None
        self._stack = ExitStack()

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
                self.check_abilities()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.pop_all().__exit__(kind, value, tb)

    def close(self) -> None:
        """End: let go of everything that is kept between reloads. The node runs on. A second call does nothing."""
        self._stack.close()

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
        with self.reloading_subject(subject, cancel=cancel):
            if subject == OVERLAY_SUBJECT and self.endpoint_routes and (pods := unchecked_pods(self.node)):
                raise PodsUnchecked(self.node.name, pods)
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

    def tell(self, outcome: Outcome) -> None:
        """Tell who listens that a reload has come to its end, and count what another loader has left to ours."""
        kind = KINDS_OF_SUBJECTS.get(outcome.subject, protocol.POD)
        if self.external is not None and not self.external.supports(kind):
            self.not_supported[f"{kind}: loaded by the built-in loader"] += 1
        elif self.unreached_macros:
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
        skip_gone: bool = False,
    ) -> list[Outcome | Failure]:
        """Reload by `workers` processes, or here if that is one; one failure does not keep the others from it.

        A pod that another process has removed by its turn is a failure, UnknownTarget; with `skip_gone` it is left out.

        `observer` looks on at what is done here. The host waits for the others if it is about to lose its policy
        program, and is left alone (HostStillAsked) if one of them fails: the old programs go on to call that. The
        others wait for the host if it is about to get one, and are left alone (HostNotAsked) if it fails: the new
        programs would call what is not there. With endpoint routes the overlay waits for the pods.

        A worker has its own copy of this agent: what `change` notes in a variable stays there. `on_worker` is called in
        each, with its process id, before it begins.
        """
        return ManyReloads(self, workers, cancel, on_worker, observer, skip_gone).each(list(subjects))

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
        out, and pods that another process removes meanwhile. The host waits if it is about to lose its policy program,
        which the pods' programs call until they are reloaded; the overlay if the node has endpoint routes, because it
        leaves the policy to the pods' programs then.
        """
        many = ManyReloads(self, workers, cancel, observer=observer)
        return many.all(first=first, last=last, without=without)

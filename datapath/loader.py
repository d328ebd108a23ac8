"""The loader of one node: builds plans and applies them, many at a time, with everything kept that can be kept."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from bpf import is_ours
from datapath.base.locks import FairLock, locked
from datapath.base.mapnames import endpoint_maps
from datapath.build.templates import TemplateCache
from datapath.endpoint import DatapathConfig, Endpoint, Interface
from datapath.kernel.map import Map, MapCache
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.tcx import chosen
from datapath.load.threads import VerifierThreads
from datapath.load.types import TypeStore
from datapath.reload.outcome import Outcome
from datapath.reload.plans import host_plan, overlay_plan, pod_plan, xdp_plan
from datapath.reload.replaced import ReplacedArrays
from datapath.reload.restore import sweep
from datapath.reload.step import Plan
from datapath.reload.transaction import Observer, OnFailure, apply
from datapath.reload.unload import drop_lock, endpoint_lock, unload
from datapath.reload.workspace import Workspace


class Loader:
    """Reloads the endpoints of one node; a context manager. Its methods may be called from many threads.

    Kept between reloads: parsed templates, verification times, descriptors of shared pinned maps and BTF, sockets, and
    `verifiers` threads that verify the programs of one collection side by side (1: none, the caller does it alone).
    """

    def __init__(
        self,
        config: DatapathConfig,
        *,
        verifiers: int | None = None,
        on_new_map: Callable[[Map], None] | None = None,
        on_compile: Callable[..., None] | None = None,
        templates: TemplateCache | None = None,
    ) -> None:
        self.config = replace(config, attach=chosen(config.attach))
        self.templates = templates if templates is not None else TemplateCache(config, on_compile=on_compile)
        self._on_new_map = on_new_map
        self._verifiers = verifiers or os.cpu_count() or 1
        self._stack = ExitStack()
        self._executor: VerifierThreads | None = None
        self._maps = MapCache()
        self._replaced = ReplacedArrays()
        # A map without types has the layout of our own sources (lab/abi/tables.py).
        self.types = TypeStore(all_maps=not is_ours(config.library))
        self._sockets: queue.SimpleQueue[NetlinkSocket] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._maps.close)
            stack.callback(self.types.close)
            if self._verifiers > 1:
                self._executor = stack.enter_context(VerifierThreads(_cpus(self._verifiers)))
            stack.callback(self._close_sockets)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @property
    def idle_sockets(self) -> int:
        """How many netlink sockets are kept for the next reloads."""
        return self._sockets.qsize()

    def stop_idle_threads(self) -> None:
        """End the threads that verify until they are needed again: a process is best forked from a single thread."""
        if self._executor is not None:
            self._executor.stop_idle()

    def inherited(self, *, verifiers: int | None) -> Loader:
        """Return a loader for a forked process. It knows the templates of this one; everything else is its own."""
        templates = self.templates.inherited()
        return Loader(self.config, verifiers=verifiers, on_new_map=self._on_new_map, templates=templates)

    def configure(self, config: DatapathConfig) -> None:
        """Take another configuration for the reloads that follow; paths and namespace stay."""
        self.config = replace(config, attach=chosen(config.attach))
        self.templates.update(self.config)

    def plan(self, endpoint: Endpoint, *, subject: str, down: bool = False) -> Plan:
        """Return the plan of an endpoint's reload; nothing is done. `subject` is what messages call the endpoint.

        `down`: an unload that did not end may have set the pod's interface down.
        """
        if endpoint.is_host:
            return host_plan(self.config, endpoint, self.links(), subject=subject)
        return pod_plan(self.config, endpoint, subject=subject, down=down)

    def plan_overlay(self, generation: int) -> Plan:
        """Return the plan of the overlay's reload; nothing is done."""
        return overlay_plan(self.config, generation)

    def plan_xdp(self, generation: int) -> Plan:
        """Return the plan of the reload of the devices' XDP programs; nothing is done."""
        return xdp_plan(self.config, generation, self.links())

    def apply(
        self,
        plan: Plan,
        *,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
        on_failure: OnFailure | None = None,
    ) -> Outcome:
        """Apply a plan; entirely, or not at all. Two reloads of the same endpoint wait for each other.

        `on_failure` hears of a reload that failed, when it is undone.
        """
        with self.lock_endpoint(plan.endpoint_id, cancel=cancel):
            return self.apply_locked(plan, observer=observer, cancel=cancel, on_failure=on_failure)

    def lock_endpoint(self, number: int, *, cancel: threading.Event | None = None) -> AbstractContextManager[None]:
        """Hold the lock of an endpoint: nobody reloads or unloads it meanwhile.

        What was planned before may be old when the lock is there.
        """
        return locked(endpoint_lock(self.config, number), cancel or threading.Event())

    def drop_lock(self, number: int) -> None:
        """Remove the lock of an endpoint that does not exist, and its directory; the caller holds it."""
        drop_lock(self.config, number)

    def apply_locked(
        self,
        plan: Plan,
        *,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
        on_failure: OnFailure | None = None,
    ) -> Outcome:
        """Apply a plan as `apply` does, for a caller that holds the lock of its endpoint."""
        cancel = cancel or threading.Event()
        with self._socket() as netlink:
            work = Workspace(
                config=self.config,
                netlink=netlink,
                executor=self._executor,
                templates=self.templates,
                map_cache=self._maps,
                types=self.types,
                cancel=cancel,
                maps_lock=self._maps_lock(cancel),
                replaced=self._replaced,
                on_new_map=self._on_new_map,
            )
            with work:
                return apply(plan, work, observer=observer, on_failure=on_failure)

    def many(self) -> AbstractContextManager[None]:
        """Return a block for many reloads one after the other: what they replace is let go when it ends.

        Emptying the replaced program arrays would hold up the reloads that follow (datapath/reload/replaced.py).
        """
        return self._replaced.held()

    def unload(
        self,
        endpoint: Endpoint,
        *,
        forget: Callable[[], object],
        detach: Callable[[], object] | None = None,
        discard: Callable[[], object] | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        """Take a pod out of the datapath; `forget` is where the control plane drops its own entries.

        `detach` removes routes and filters, if somebody else than this loader is to do it. `discard` comes last, when
        nothing of the pod is left but the lock: whoever waits for that finds no pod.
        Waits for a reload of the endpoint. Whoever needs the node's maps alone locks them in `forget`: a reload has the
        lock of its endpoint already when it waits for the maps.
        """
        with self.lock_endpoint(endpoint.id, cancel=cancel):
            self.unload_locked(endpoint, forget=forget, detach=detach, discard=discard)

    def unload_locked(
        self,
        endpoint: Endpoint,
        *,
        forget: Callable[[], object],
        detach: Callable[[], object] | None = None,
        discard: Callable[[], object] | None = None,
    ) -> None:
        """Take a pod out as `unload` does, for a caller that holds the lock of its endpoint."""
        with self._socket() as netlink:
            unload(self.config, netlink, endpoint, forget, detach=detach, discard=discard)
            self._maps.forget(str(self.config.globals / name) for name in endpoint_maps(endpoint.id))

    def sweep(self, keep: Collection[int]) -> list[str]:
        """Remove what belongs to endpoints whose numbers are not in `keep`; return what was removed.

        The caller excludes all reloads, and updates of the maps.
        """
        with self._socket() as netlink:
            return sweep(self.config, netlink, keep)

    @contextmanager
    def lock_maps(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Hold the maps lock exclusively: no reload in any process uses the maps meanwhile.

        Do not call it from a step or a gate of a reload.
        """
        lock = self._maps_lock(cancel or threading.Event())
        try:
            lock.acquire(exclusive=True)
            yield
        finally:
            lock.close()

    def _maps_lock(self, cancel: threading.Event) -> FairLock:
        return FairLock(self.config.state / "maps.lock", cancel)

    def links(self) -> dict[str, Interface]:
        """Return the interfaces of the node by name."""
        with self._socket() as netlink:
            return netlink.interfaces()

    @contextmanager
    def _socket(self) -> Iterator[NetlinkSocket]:
        try:
            netlink = self._sockets.get_nowait()
        except queue.Empty:
            netlink = NetlinkSocket(self.config.netns)
        try:
            yield netlink
        except BaseException:
            # An answer to an interrupted request may still be under way: such a socket is not used again.
            netlink.close()
            raise
        self._sockets.put(netlink)

    def _close_sockets(self) -> None:
        while not self._sockets.empty():
            self._sockets.get_nowait().close()


def _cpus(count: int) -> list[int]:
    """Return CPUs to verify on; processes that were forked one after the other get different ones."""
    cpus = sorted(os.sched_getaffinity(0))
    first = os.getpid() * count
    return [cpus[(first + number) % len(cpus)] for number in range(min(count, len(cpus)))]

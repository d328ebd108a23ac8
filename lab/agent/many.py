"""Reloads of many subjects, in the order that packets need: who is called by others comes before them, and goes after.

What they replace is let go when all are reloaded: emptied beside those that follow, it would hold them up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from datapath.base.mapnames import POLICY_CALLS
from datapath.errors import CompileError, ObjectError, ReloadlabError
from datapath.kernel import progarray
from datapath.reload.outcome import Outcome
from datapath.reload.plans import OVERLAY_SUBJECT
from datapath.reload.transaction import Observer
from lab.agent.reloads import Failure, reload_by_workers, reload_one_by_one
from lab.loaders.protocol import NotSupported
from lab.node.maps import find_map
from lab.node.node import UnknownTarget
from lab.node.topology import HOST, HOST_ENDPOINT

if TYPE_CHECKING:
    from lab.agent.reloader import Reloader


class PolicyChange(Enum):
    """What the next reload of the host does to its policy program, if it is not just replaced."""

    GAINED, LOST = "gained", "lost"


class HostStillAsked(ReloadlabError):
    """The host was to lose its policy program, which programs of pods go on to call: their reloads have failed."""

    def __init__(self, node: str, failed: Sequence[str]) -> None:
        super().__init__(f"not reloaded: its policy program is still called by {', '.join(failed)} of {node}")
        self.failed = tuple(failed)


class HostNotAsked(ReloadlabError):
    """Programs were to call the host's policy program, which its failed reload has not brought."""

    def __init__(self, node: str) -> None:
        super().__init__(
            f"not reloaded: it would call the host's policy program, and the reload of the host of {node} failed"
        )


@dataclass(frozen=True, slots=True)
class ManyReloads:
    """Reloads by `workers` processes, or in this one if that is one.

    `observer` looks on at what is done here, `on_worker` is called in each worker with its process id. With
    `skip_gone` pods that are gone by their turn are left out.
    """

    reloader: Reloader
    workers: int = 1
    cancel: threading.Event | None = None
    on_worker: Callable[[int], object] | None = None
    observer: Observer | None = None
    skip_gone: bool = False

    def each(self, names: Sequence[str]) -> list[Outcome | Failure]:
        """Reload all of them; a failure keeps only those from it that would call what has failed (see reload_many)."""
        with self.reloader.loader.many():
            change = self._policy_of_the_host() if HOST in names and len(names) > 1 else None
            tunnel = [name for name in names if name == OVERLAY_SUBJECT and self._tunnel_is_last()]
            others = [name for name in names if name not in tunnel and (change is None or name != HOST)]
            results = self._reload([HOST], 1) if change is PolicyChange.GAINED else []
            if any(isinstance(result, Failure) for result in results):
                results += [Failure(name, HostNotAsked(self.reloader.node.name)) for name in (*others, *tunnel)]
            else:
                results += self._reload(others, self.workers)
                results += self._reload(tunnel, 1)
            failed = [result.subject for result in results if isinstance(result, Failure)]
            if change is PolicyChange.LOST and failed:
                results.append(Failure(HOST, HostStillAsked(self.reloader.node.name, failed)))
            elif change is PolicyChange.LOST:
                results += self._reload([HOST], 1)
            whole = set(self.reloader.subjects) <= set(names)
            if whole and not any(isinstance(result, Failure) for result in results):
                self._settle_routes()
            return results

    def all(self, *, first: Sequence[str], last: Sequence[str], without: Container[str]) -> list[Outcome]:
        """Reload what belongs to the node, then the endpoints; the first failure is raised (see reload_all)."""
        reloader = self.reloader
        with reloader.loader.many():
            if OVERLAY_SUBJECT in reloader.node_subjects and OVERLAY_SUBJECT not in first and self._tunnel_is_last():
                last = (*(name for name in last if name != OVERLAY_SUBJECT), OVERLAY_SUBJECT)
            if HOST not in first and self._policy_of_the_host() is PolicyChange.LOST:
                last = (*(name for name in last if name != HOST), HOST)
            order = [name for name in dict.fromkeys((*first, *reloader.node_subjects)) if name not in last]
            done = [self._one(subject) for subject in order]
            endpoints = [name for name in reloader.subjects if name not in (*order, *last) and name not in without]
            rest = reloader.reload_many(
                endpoints,
                workers=self.workers,
                cancel=self.cancel,
                on_worker=self.on_worker,
                observer=self.observer,
                skip_gone=True,
            )
            for result in rest:
                if isinstance(result, Failure):
                    raise result.error
            done += [result for result in rest if isinstance(result, Outcome)]
            done += [self._one(subject) for subject in last]
            self._settle_routes()
            return done

    def _one(self, subject: str) -> Outcome:
        return self.reloader.reload(subject, observer=self.observer, cancel=self.cancel)

    def _reload(self, names: Sequence[str], workers: int) -> list[Outcome | Failure]:
        results = self._reload_named(names, workers)
        return [result for result in results if not self._is_left_out(result)]

    def _is_left_out(self, result: Outcome | Failure) -> bool:
        return self.skip_gone and isinstance(result, Failure) and isinstance(result.error, UnknownTarget)

    def _reload_named(self, names: Sequence[str], workers: int) -> list[Outcome | Failure]:
        reloader, workers = self.reloader, min(workers, len(names))
        if workers <= 1:
            return reload_one_by_one(reloader, names, cancel=self.cancel, observer=self.observer)
        results = reload_by_workers(reloader, names, workers=workers, cancel=self.cancel, on_worker=self.on_worker)
        for result in results:
            if isinstance(result, Outcome):
                reloader.tell(result)
            elif isinstance(result.error, NotSupported):
                reloader.refused.append(result.error)
            elif result.reload is not None and reloader.on_failure is not None:
                reloader.on_failure(result.reload)
        return results

    def _tunnel_is_last(self) -> bool:
        """Tell whether the tunnel's programs leave the policy to egress programs, which the pods must have before."""
        return self.reloader.endpoint_routes

    def _policy_of_the_host(self) -> PolicyChange | None:
        """Tell whether the next reload of the host takes its policy program away, or gives it one.

        What cannot be built changes nothing: the reload says why.
        """
        present = find_map(self.reloader.node, POLICY_CALLS)
        if present is None:
            return None
        with present:
            has = progarray.program_at(present.fd, HOST_ENDPOINT) is not None
        try:
            array = self.reloader.host_spec(cancel=self.cancel).maps.get(POLICY_CALLS)
        except (CompileError, ObjectError):
            return None
        will = array is not None and bool(array.contents)
        if has == will:
            return None
        return PolicyChange.GAINED if will else PolicyChange.LOST

    def _settle_routes(self) -> None:
        """Remove the node route that an interrupted switch has left: every pod has a route of its own again."""
        reloader = self.reloader
        with reloader.reloading(cancel=self.cancel):
            # In the middle of a switch, the programs are built for another mode than node.json has.
            if reloader.endpoint_routes and reloader.node.spec.endpoint_routes:
                reloader.node.set_node_route(False)

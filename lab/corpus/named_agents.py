"""Named faults of an agent: what it does around reloads, and in which order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from datapath.base.mapnames import POLICY, calls_map
from datapath.endpoint import Endpoint
from datapath.kernel.map import open_pin
from datapath.loader import Loader
from datapath.reload import policyarrays
from datapath.reload.outcome import Outcome
from datapath.reload.prepare import Compile
from datapath.reload.step import Plan
from datapath.reload.transaction import Observer
from lab.agent.agent import Agent
from lab.agent.restore import Restored
from lab.corpus.fault import Applied, Fault, Install
from lab.corpus.steps import Skipped
from lab.node.topology import PodSpec

WORK = 0.02
"""Seconds that the rest of an agent's work takes between two things that are no longer together."""


def becoming(make: Callable[[Applied], type[Agent]]) -> Install:
    """Return what turns an agent into one of the class that `make` returns. An agent that takes over is of it too."""

    def install(agent: Agent, applied: Applied) -> None:
        agent.__class__ = make(applied)

    return install


def sweeping(applied: Applied) -> type[Agent]:
    class Sweeping(Agent):
        """Removes the calls maps of endpoints that it does not know yet."""

        def restore(
            self, *, workers: int = 1, last: Sequence[str] = (), cancel: threading.Event | None = None
        ) -> Restored:
            for pod in self.node.pods:
                (self.config.globals / calls_map(pod.endpoint_id)).unlink(missing_ok=True)
                applied()
            return super().restore(workers=workers, last=last, cancel=cancel)

    return Sweeping


def ignoring_unfinished(applied: Applied) -> type[Agent]:
    class IgnoringUnfinished(Agent):
        """Takes an endpoint that a killed reload has left with two objects for none, and sweeps its maps."""

        def restore(
            self, *, workers: int = 1, last: Sequence[str] = (), cancel: threading.Event | None = None
        ) -> Restored:
            self.sync(cancel=cancel)
            known = [name for name in self.subjects if not self._is_ignored(name)]
            return Restored([self.reload(name, cancel=cancel) for name in known], {}, {}, ())

        def _is_ignored(self, name: str) -> bool:
            if name not in (pod.name for pod in self.node.pods):
                return False
            ident = self.node.pod(name).endpoint_id
            found = any((self.config.state / str(ident)).glob("*.new"))
            if found:
                (self.config.globals / calls_map(ident)).unlink(missing_ok=True)
                applied()
            return found

    return IgnoringUnfinished


def pods_first(applied: Applied) -> type[Agent]:
    class PodsFirst(Agent):
        """Reloads the host when all pods are reloaded."""

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
            applied()
            pods = [name for name in self.subjects if name not in self.node_subjects]
            return super().reload_all(
                workers=workers,
                first=(*first, *pods),
                last=last,
                without=without,
                cancel=cancel,
                observer=observer,
            )

    return PodsFirst


def exposing_early(applied: Applied) -> type[Agent]:
    class ExposingEarly(Agent):
        """Writes a new pod into cilium_lxc before its policy program is in its slot."""

        def add_pod(self, pod: PodSpec | str) -> Outcome:
            made = self.node.add_pod(pod)
            applied()
            self.sync()
            return self.reload(made.name)

    return ExposingEarly


def slot_first(applied: Applied) -> type[Agent]:
    class SlotFirst(Agent):
        """Empties a dying pod's policy slot while cilium_lxc still has its addresses."""

        def remove_pod(self, name: str) -> None:
            policyarrays.clear(self.config.globals, self.node.pod(name).endpoint_id)
            applied()
            time.sleep(WORK)
            super().remove_pod(name)

    return SlotFirst


def keeping_modes(applied: Applied) -> type[Agent]:
    class KeepingModes(Agent):
        """Gives the other routing mode only to pods that are made after the switch."""

        def set_endpoint_routes(
            self,
            on: bool,
            *,
            workers: int = 1,
            cancel: threading.Event | None = None,
            observer: Observer | None = None,
        ) -> list[Outcome]:
            applied()
            self.__dict__["kept"] = frozenset(pod.name for pod in self.node.pods)
            return super().set_endpoint_routes(on, workers=workers, cancel=cancel, observer=observer)

        def endpoint(self, name: str) -> Endpoint:
            found = super().endpoint(name)
            return found.with_endpoint_routes(not self.endpoint_routes) if name in self._kept else found

        @property
        def _kept(self) -> frozenset[str]:
            """The pods that were there at the last switch. (The class comes after the agent was made.)"""
            return frozenset(self.__dict__.get("kept", ()))

    return KeepingModes


def keeping_the_node_route(applied: Applied) -> type[Agent]:
    class KeepingTheNodeRoute(Agent):
        """Leaves the route of the other mode, to all pods by cilium_host, when endpoint routes are switched on."""

        def set_endpoint_routes(
            self,
            on: bool,
            *,
            workers: int = 1,
            cancel: threading.Event | None = None,
            observer: Observer | None = None,
        ) -> list[Outcome]:
            done = super().set_endpoint_routes(on, workers=workers, cancel=cancel, observer=observer)
            if on:
                applied()
                self.node.set_node_route(True)
            return done

    return KeepingTheNodeRoute


def flushing(applied: Applied) -> type[Agent]:
    class Flushing(Agent):
        """Empties the policy maps before it writes the new policies."""

        def apply_policies(self, document: object, *, cancel: threading.Event | None = None) -> None:
            with self.updating(cancel=cancel):
                for path in self.config.globals.glob(f"{POLICY}*"):
                    with open_pin(path) as rules:
                        for key in list(rules.keys()):
                            rules.delete(key)
                applied()
                time.sleep(WORK)
                super().apply_policies(document, cancel=cancel)

    return Flushing


def working_without_a_datapath(applied: Applied) -> type[Agent]:
    class WithoutDatapath(Agent):
        """Takes an endpoint for loaded whose template is missing on the disk."""

        def plan(self, subject: str, *, generation: int = 0) -> Plan:
            plan = super().plan(subject, generation=generation)
            if self.config.templates.exists():
                return plan
            return plan.change(
                lambda step: step if isinstance(step, Compile) else Skipped(step.target, step, applied=applied)
            )

    return WithoutDatapath


def unload_by_name(agent: Agent, applied: Applied) -> None:
    """Have the agent's loader take an endpoint's interface for the one that has its name now."""

    class UnloadByName(Loader):
        """Does not ask whether an interface is still the one that it was."""

        def unload(
            self,
            endpoint: Endpoint,
            *,
            forget: Callable[[], object],
            detach: Callable[[], object] | None = None,
            discard: Callable[[], object] | None = None,
            cancel: threading.Event | None = None,
        ) -> None:
            applied()
            bare = replace(endpoint, ifindex=None)
            super().unload(bare, forget=forget, detach=detach, discard=discard, cancel=cancel)

    agent.loader.__class__ = UnloadByName


FAULTS = (
    Fault(
        "B9-sweep-before-restore",
        "named",
        "an agent that starts removes the calls maps of endpoints that it has not restored yet",
        install=becoming(sweeping),
        cites=("cilium issue 7982",),
        only=("restart",),
    ),
    Fault(
        "B15-pods-before-host",
        "named",
        "reloads pods before the host, whose policy program they call",
        install=becoming(pods_first),
        cites=("cilium issue 29482", "cilium issue 32151"),
        only=("builds",),
    ),
    Fault(
        "B15-endpoint-not-yet-plugged",
        "named",
        "writes a new pod into cilium_lxc before its policy program is in its slot",
        install=becoming(exposing_early),
        cites=("cilium issue 32151", "this agent, 2026-11-29"),
        only=("pods",),
    ),
    Fault(
        "B16-teardown-slot-first",
        "named",
        "empties a dying pod's policy slot while cilium_lxc still has its addresses",
        install=becoming(slot_first),
        cites=("cilium issue 32167",),
        only=("pods",),
    ),
    Fault(
        "B23-only-new-pods-switch",
        "named",
        "switches endpoint routes only for pods that are made afterwards",
        install=becoming(keeping_modes),
        cites=("cilium issue 13773", "cilium issue 15228"),
        only=("switched",),
    ),
    Fault(
        "B24-unload-by-name",
        "named",
        "the late deletion of a former pod removes the programs of the one that has its interface name now",
        install=unload_by_name,
        cites=("cilium issue 44530", "this loader, 2026-11-25"),
        only=("pods",),
    ),
    Fault(
        "B27-missing-template",
        "named",
        "takes an endpoint for loaded whose template is missing on the disk",
        install=becoming(working_without_a_datapath),
        cites=("cilium issue 8817", "cilium issue 9455"),
        only=("templates",),
    ),
    Fault(
        "B28-unfinished-endpoint-is-none",
        "named",
        "an agent that starts takes an endpoint that a killed reload has left unfinished for none, and sweeps its maps",
        install=becoming(ignoring_unfinished),
        cites=("cilium issue 29275",),
        only=("restart",),
    ),
    Fault(
        "B29-node-route-stays",
        "named",
        "leaves the route to all pods by cilium_host when endpoint routes are switched on",
        install=becoming(keeping_the_node_route),
        cites=("cilium issue 11041", "cilium issue 28324"),
        only=("switched_on",),
    ),
    Fault(
        "B32-flush-then-fill",
        "named",
        "empties the policy maps before it writes the new policies",
        install=becoming(flushing),
        cites=("cilium issue 10936", "cilium issue 3897"),
        only=("policy_updates",),
    ),
)

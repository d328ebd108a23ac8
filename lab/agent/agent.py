"""Stands in for Cilium's control plane: fills the maps from the topology, and has the endpoints reloaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from datapath.endpoint import XdpMode
from datapath.reload.outcome import Outcome
from datapath.reload.transaction import Observer
from lab.agent import aside, enforcement, mapfill, modes, prefilter
from lab.agent.collector import Collected, collect, forget
from lab.agent.planning import Change
from lab.agent.policy import Network
from lab.agent.policyfile import parse
from lab.agent.reloader import Reloader
from lab.agent.reloads import Failure
from lab.agent.restore import Restored, restore
from lab.agent.subjectlock import lock_subject
from lab.node.topology import PodFacts, PodSpec

__all__ = ["Agent", "Change", "Failure"]


class Agent(Reloader):
    """The control plane of one node. `on_policies` is called before other policies begin to hold.

    Without `creates_maps` it fills the maps that are there, and leaves those that are missing to the reloads.
    """

    on_policies: Callable[[], object] | None = None
    creates_maps = True

    def take_over(self, former: Agent) -> None:
        """Hand on what others have set on a former agent of the node: who listens to it, and its change of plans."""
        self.change, self.on_policies, self.creates_maps = former.change, former.on_policies, former.creates_maps
        self.on_reload, self.on_outcome, self.on_failure = former.on_reload, former.on_outcome, former.on_failure

    def start(self, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Fill the shared maps and reload everything once; the first failure is raised."""
        self.sync(cancel=cancel)
        return self.reload_all(workers=workers, cancel=cancel)

    def restore(self, *, workers: int = 1, last: Sequence[str] = (), cancel: threading.Event | None = None) -> Restored:
        """Take over a node that runs: reload what its state directories tell, then remove what nobody has any more.

        What belongs to the node comes before its endpoints, but for `last`. The first failure is raised; nothing is
        removed then. In the end the node has its own policies again if a process was killed that had put them aside.
        """
        return restore(self, workers=workers, last=last, cancel=cancel)

    def sync(
        self,
        *,
        sweep: bool = True,
        partly: bool = False,
        cancel: threading.Event | None = None,
    ) -> bool:
        """Bring maps and routes in line with what is declared, of this node and of the others of its cluster.

        Without `sweep`, entries of what is declared no more stay. A map that is too small is PolicyMapFull or
        MapTooSmall. With `partly`, before a reload that may replace it, it stays, and False is returned: when all is
        reloaded this is to be called again.
        """
        with self.updating(cancel=cancel):
            prefilter.sync(self.node, self.config.globals)
            host = self.host_spec(cancel=cancel)
            fits = mapfill.fill_all(
                self.node,
                self.config.globals,
                host,
                types=self.loader.types,
                create=self.creates_maps,
                sweep=sweep,
                partly=partly,
            )
            self.node.sync_routes()
            return fits

    def apply_policies(self, document: object, *, cancel: threading.Event | None = None) -> None:
        """Let these policies hold from now on, instead of all others: all of them, or none.

        `document` is what lab.policyfile.parse takes; an empty list lets everything pass. Raises PolicyError,
        UnknownTarget, PolicyMapFull, and PoliciesInUse while another process has put the node's own aside. Those that a
        killed one has put aside are forgotten.
        """
        with self.updating(cancel=cancel), aside.forgotten(self.node):
            self.exchange_policies(document, cancel=cancel)

    def exchange_policies(self, document: object, *, cancel: threading.Event | None = None) -> object:
        """Do what apply_policies does, but for what is put aside; return what put_back_policies takes to undo it."""
        policies = parse(document)
        with self.updating(cancel=cancel):
            enforcement.check(self.node, policies)
            if self.on_policies is not None:
                self.on_policies()
            before = enforcement.document_of(self.node)
            with ExitStack() as undo:
                undo.callback(self.put_back_policies, before)
                enforcement.store(self.node, document)
                self.sync(cancel=cancel)
                undo.pop_all()
            return before

    def put_back_policies(self, document: object) -> None:
        """Let policies hold again that enforcement.document_of has returned; None: none was ever given."""
        with self.updating():
            enforcement.store(self.node, [] if document is None else document)
            self.sync()
            enforcement.store(self.node, document)

    def deny(self, *prefixes: str, cancel: threading.Event | None = None) -> None:
        """Have the XDP programs drop all packets from these prefixes as well: of all of them, or of none.

        BadPrefix for what is none. Without XDP programs nothing is dropped until there are some.
        """
        self.exchange_denied(deny=prefixes, cancel=cancel)

    def allow(self, *prefixes: str, cancel: threading.Event | None = None) -> None:
        """Let packets from these prefixes, which are denied, reach the other programs again; BadPrefix."""
        self.exchange_denied(allow=prefixes, cancel=cancel)

    def exchange_denied(
        self, *, deny: Sequence[str] = (), allow: Sequence[str] = (), cancel: threading.Event | None = None
    ) -> tuple[Network, ...]:
        """Do what `deny` and `allow` do as one change, and return what put_back_denied takes to undo it.

        What is denied before and after, by whatever prefix, is so all the time.
        """
        more, less = prefilter.parse(deny), prefilter.parse(allow)
        with self.updating(cancel=cancel), ExitStack() as undo:
            before = prefilter.stored(self.node)
            after = prefilter.changed(before, more, less)
            undo.callback(self.put_back_denied, before)
            prefilter.store(self.node, after)
            prefilter.sync(self.node, self.config.globals)
            undo.pop_all()
        return before

    def put_back_denied(self, networks: tuple[Network, ...]) -> None:
        """Deny these prefixes and no others."""
        with self.updating():
            prefilter.store(self.node, networks)
            prefilter.sync(self.node, self.config.globals)

    def set_endpoint_routes(
        self,
        on: bool,
        *,
        workers: int = 1,
        cancel: threading.Event | None = None,
        observer: Observer | None = None,
    ) -> list[Outcome]:
        """Switch a live node to the other routing mode, without a moment in which a pod has no route."""
        return modes.set_endpoint_routes(self, on, workers=workers, cancel=cancel, observer=observer)

    def set_xdp(self, mode: XdpMode | None, *, cancel: threading.Event | None = None) -> Outcome:
        """Attach the XDP programs of the native devices in another mode of a live node; None removes them."""
        return modes.set_xdp(self, mode, cancel=cancel)

    def set_tunnel_port(self, port: int, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Move the tunnel to another UDP port; until all is reloaded nothing goes through it."""
        return modes.set_tunnel_port(self, port, workers=workers, cancel=cancel)

    def set_mtu(self, mtu: int, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Change the MTU of a live node, in place; open connections go on."""
        return modes.set_mtu(self, mtu, workers=workers, cancel=cancel)

    def add_pod(self, pod: PodSpec | str) -> Outcome:
        """Make one more pod, load its programs, and only then let others find it (lxcmap.WriteEndpoint).

        If that fails, the pod goes again. If it is killed, nobody delivers to the pod until a reload has loaded it.
        """
        made = self.node.add_pod(pod, loaded=False)
        with self.undone_pod(made.name):
            self.sync()
            return self.reload(made.name)

    @contextmanager
    def undone_pod(self, name: str) -> Iterator[None]:
        """Remove a pod again if the block fails."""
        try:
            yield
        except BaseException:
            self.remove_pod(name)
            raise

    def remove_pod(self, name: str) -> None:
        """Remove a pod, from the datapath first, then from the node.

        What is killed or fails leaves a pod to which nobody delivers: its next reload brings it back, if it is not
        removed again.
        """
        with self.reloading():
            self.node.removable_pod(name)
            self.require_unload()
            with lock_subject(self.loader, self.node, name, self._refresh, None), ExitStack() as updating:
                # Only now: others may have removed the pod and made another of its name, or have reloaded it, which
                # drops the mark.
                pod = self.node.pod(name)
                self.node.set_loaded(name, False)

                def forget_addresses() -> None:
                    # The endpoint comes before the maps, as in a reload.
                    updating.enter_context(self.updating())
                    mapfill.forget(self.config.globals, pod)

                def discard() -> None:
                    self.forget_connections(pod)
                    self.node.remove_pod(name)

                self.unload(name, forget=forget_addresses, discard=discard)

    def collect_connections(self) -> tuple[Collected, ...]:
        """Delete the connections whose lifetime is over; return what was found in each existing map."""
        return collect(self.config.globals)

    def forget_connections(self, pod: PodFacts) -> None:
        """Delete a pod's connections: the next pod with its addresses would inherit them."""
        forget(self.config, {pod.ipv4, pod.ipv6})

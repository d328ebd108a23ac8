"""The emulated node: `Node` builds it, opens it, describes it to the pipeline, changes and removes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Self

from bpf import LIBRARY
from datapath.endpoint import DatapathConfig, Endpoint, XdpMode, globals_of
from datapath.errors import ReloadlabError
from datapath.kernel import netkit
from lab.errors import LabElsewhere, LabNotFound, LabNotReady, system_errors
from lab.node import builder, described, live, registry
from lab.node.status import Stamp
from lab.node.topology import (
    HEALTH,
    HOST,
    NODE,
    OUTSIDE,
    InvalidSpec,
    NodeFacts,
    NodeSpec,
    PodFacts,
    PodSpec,
    check_datapath_mode,
    next_pod_number,
    next_tunnel_ifindex,
    plan_node,
    plan_pod,
)


class UnknownTarget(ReloadlabError):
    """A missing pod, endpoint or namespace; `existing` are those that the node has."""

    def __init__(self, node: str, target: str, existing: tuple[str, ...]) -> None:
        near = get_close_matches(target.split()[-1], existing, n=1) if len(existing) > 12 else []
        shown = ", ".join(existing if len(existing) <= 12 else (*existing[:6], "...", existing[-1]))
        super().__init__(f"lab {node} has no {target}; {f'did you mean {near[0]}?' if near else f'it has {shown}'}")
        self.target = target
        self.existing = existing


class Node:
    """A node in network namespaces.

    `with Node(spec) as node` builds it and removes it at the end; meanwhile no other process can remove it. `Node.up`
    builds one that stays, `Node.open` opens it, from any process. All constructors are cheap and hold nothing open.
    Building raises LabExists, LabSystemError, NetlinkError and NetkitMissing, and leaves nothing behind then.
    """

    def __init__(self, spec: NodeSpec, *, size: str = registry.DEFAULT_SIZE) -> None:
        self.spec = spec
        self.root = registry.lab_root(spec.name)
        self._size = size
        self._facts: NodeFacts | None = None
        self._stamp: Stamp | None = None
        self._held: int | None = None
        self._kept = False

    @classmethod
    def up(cls, spec: NodeSpec, *, size: str = registry.DEFAULT_SIZE) -> Self:
        """Build a node that stays when the process ends."""
        node = cls(spec, size=size)
        node._check_kernel()
        with registry.claim(spec.name, size, cluster=spec.cluster) as claim:
            node._build()
            claim.keep()
        return node

    @classmethod
    def open(cls, name: str) -> Self:
        """Open a node that is up. Raises LabNotFound, LabNotReady, LabElsewhere, NotALab."""
        # In this order: what is written in between is read again.
        stamp = registry.stamp(name)
        spec, found = registry.read_facts(name)
        node = cls(spec)
        node._facts, node._stamp = found, stamp
        return node

    def __enter__(self) -> Self:
        self._check_kernel()
        with registry.claim(self.name, self._size, cluster=self.spec.cluster) as claim:
            self._build()
            self._held = claim.keep_locked()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if not self._kept:
            self.down()

    def keep(self) -> None:
        """Let a node stay when its context ends, like one of `up`; from now on others can use and remove it."""
        registry.keep(self.name)
        self._kept = True
        if self._held is not None:
            registry.unlock(self._held)
            self._held = None

    def _check_kernel(self) -> None:
        """Raise NetkitMissing if the kernel lacks the devices that the pods are to have."""
        if self.spec.datapath_mode != "veth":
            netkit.require()

    def down(self, *, force: bool = False) -> None:
        """Remove the node, with everything that runs in its namespaces; LabBusy if others use it."""
        held, self._held = self._held, None
        registry.remove(self.name, force=force, held=held)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def facts(self) -> NodeFacts:
        """Everything that was chosen when the node was built."""
        if self._facts is None:
            raise LabNotFound(self.name, ())
        return self._facts

    @property
    def pods(self) -> tuple[PodFacts, ...]:
        return self.facts.pods

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The names that `netns` takes."""
        return (NODE, HEALTH, OUTSIDE, *(pod.name for pod in self.pods))

    def netns(self, name: str) -> Path:
        """Return the path of a namespace: node, health, outside or a pod's name; UnknownTarget if it is missing."""
        if name not in self.namespaces:
            raise UnknownTarget(self.name, name, self.namespaces)
        return self.root / registry.NAMESPACES / name

    def pod(self, name: str) -> PodFacts:
        """Return a pod, or the health endpoint, by name."""
        for pod in (*self.pods, self.facts.health):
            if pod.name == name:
                return pod
        raise UnknownTarget(self.name, name, (*(pod.name for pod in self.pods), HEALTH))

    def removable_pod(self, name: str) -> PodFacts:
        """Return a pod by name; InvalidSpec for the health endpoint, which belongs to every node."""
        pod = self.pod(name)
        if pod is self.facts.health:
            raise InvalidSpec("the health endpoint belongs to every node")
        return pod

    def lock_shared(self) -> AbstractContextManager[None]:
        """Hold the node against removal while it is used."""
        return registry.lock_shared(self.name)

    @property
    def globals(self) -> Path:
        """The directory of the pinned maps, as `datapath_config` has it."""
        return globals_of(self.root / registry.BPFFS)

    def datapath_config(
        self,
        library: Path | None = None,
        *,
        clang: str | None = None,
        filter_priority: int = 1,
        egress_devices: bool = True,
        defines: tuple[tuple[str, str], ...] = (),
        node_options: tuple[tuple[str, str], ...] = (),
    ) -> DatapathConfig:
        """Return what the pipeline must know about this node; `library` defaults to our own C sources."""
        return DatapathConfig(
            library=library or LIBRARY,
            state=self.root / registry.STATE,
            bpffs=self.root / registry.BPFFS,
            netns=self.netns(NODE),
            node=described.node_config(self.spec, self.facts, options=node_options),
            devices=self.spec.devices,
            egress_devices=egress_devices,
            filter_priority=filter_priority,
            clang=clang,
            defines=defines,
            xdp=self.spec.xdp_mode,
            datapath_mode=check_datapath_mode(self.spec.datapath_mode),
        )

    def endpoint(self, name: str) -> Endpoint:
        """Return an endpoint by name: a pod's, `health` or `host`, in the node's present routing mode."""
        if name == HOST:
            return described.host_endpoint(self.spec, self.facts)
        try:
            return described.pod_endpoint(self.spec, self.pod(name))
        except UnknownTarget as error:
            raise UnknownTarget(self.name, f"endpoint {name}", (*error.existing, HOST)) from None

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return all endpoints: the host, health, the pods."""
        return tuple(self.endpoint(name) for name in (HOST, HEALTH, *(pod.name for pod in self.pods)))

    def refresh(self) -> None:
        """Read node.json again if another has changed the node. Raises what `open` raises."""
        stamp = registry.stamp(self.name)
        if self._facts is not None and stamp != self._stamp:
            self.spec, self._facts = registry.read_facts(self.name)
            self._stamp = stamp

    def recover(self) -> None:
        """Undo what a process that was killed while it changed the node has left half done."""
        if live.is_unfinished(self.root):
            with self._changing():
                pass

    def set_node_route(self, on: bool) -> None:
        """Install or remove the local node route (pods by cilium_host); doing it twice is not an error."""
        live.set_node_route(self._standing, on)

    def set_endpoint_routes(self, on: bool) -> None:
        """Switch the routing mode that `endpoint` and `datapath_config` tell, and the node route; programs and
        endpoint routes follow with the next reload."""
        with self._changing(), self._noting(live.Unfinished(node_route=True)):
            live.set_node_route(self._standing, not on)
            self._remember(replace(self.spec, endpoint_routes=on), self.facts)

    def set_xdp(self, mode: XdpMode | None) -> None:
        """Set the mode of XDP that `datapath_config` tells; programs follow with the next reload."""
        with self._changing():
            self._remember(replace(self.spec, xdp=mode), self.facts)

    def add_pod(self, pod: PodSpec | str, *, loaded: bool = True) -> PodFacts:
        """Make one more pod. If it is not `loaded`, its interface is down and nobody delivers to it until `set_loaded`.

        Its first reload sets the interface up: before, no program would check what it sends.
        """
        wanted = PodSpec(pod) if isinstance(pod, str) else pod
        with self._changing():
            spec = replace(self.spec, pods=(*self.spec.pod_specs, wanted))
            made = plan_pod(spec, wanted, next_pod_number(self.pods))
            with self._noting(live.Unfinished(pod=made)):
                live.add_pod(replace(self._standing, spec=spec), made, up=loaded)
                names = self.facts.unloaded if loaded else (*self.facts.unloaded, made.name)
                self._remember(spec, replace(self.facts, pods=(*self.pods, made), unloaded=names))
        return made

    def set_loaded(self, name: str, on: bool) -> None:
        """Note whether a pod has all of its programs; UnknownTarget if it is missing."""
        with self._changing():
            self.pod(name)
            others = tuple(each for each in self.facts.unloaded if each != name)
            self._remember(self.spec, replace(self.facts, unloaded=others if on else (*others, name)))

    def remove_pod(self, name: str) -> None:
        """Remove a pod: its veth, its namespace and the processes in it. Its pins and programs are the pipeline's."""
        with self._changing():
            pod = self.removable_pod(name)
            spec = replace(self.spec, pods=tuple(p for p in self.spec.pod_specs if p.name != name))
            with self._noting(live.Unfinished(pod=pod)):
                pods = tuple(p for p in self.pods if p.name != name)
                unloaded = tuple(each for each in self.facts.unloaded if each != name)
                self._remember(spec, replace(self.facts, pods=pods, unloaded=unloaded))
                live.discard_pod(self._standing, pod)

    @property
    def peers(self) -> tuple[Node, ...]:
        """The other nodes of the cluster that are up at this moment in this mount namespace, in their order."""
        if not self.spec.cluster:
            return ()
        found = []
        for name in registry.members(self.spec.cluster):
            with suppress(LabNotFound, LabNotReady, LabElsewhere):
                found.append(Node.open(name))
        return tuple(n for n in found if n.name != self.name and n.spec.cluster == self.spec.cluster)

    def sync_routes(self) -> None:
        """Install the routes to the pods of the other nodes, and remove those to the pods of nodes that are gone."""
        if not self.spec.cluster:
            return
        live.sync_routes(self._standing, {peer.spec.node_index: peer.spec for peer in self.peers})

    def set_tunnel_port(self, port: int) -> None:
        """Give the tunnel device another UDP port, which the kernel only takes for a new one: its index changes.

        It comes back without programs, and programs that send to it must learn the new index.
        """
        with self._changing():
            made = replace(self.facts.vxlan, ifindex=next_tunnel_ifindex(self.facts.vxlan.ifindex))
            target = replace(
                self._standing,
                spec=replace(self.spec, tunnel_port=port),
                facts=replace(self.facts, vxlan=made),
            )
            with self._noting(live.Unfinished(tunnel=True)):
                live.replace_tunnel(target)
                self._remember(target.spec, target.facts)

    def set_mtu(self, mtu: int) -> None:
        """Change the MTU of all devices, bytes, in place, and with it that of the routes; indices and MACs stay."""
        with self._changing():
            spec = replace(self.spec, mtu=mtu)
            with self._noting(live.Unfinished(mtu=True)):
                live.set_mtu(replace(self._standing, spec=spec))
                self._remember(spec, self.facts)
        self.sync_routes()

    @property
    def _standing(self) -> live.Standing:
        return live.Standing(self.root, self.spec, self.facts)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Exclude all other changes of the node, in whatever process, and read its present state."""
        with registry.changing(self.name), system_errors(self.name):
            self.refresh()
            live.recover(self._standing)
            yield

    @contextmanager
    def _noting(self, change: live.Unfinished) -> Iterator[None]:
        """Keep a note of a change while it is made; if the block fails, undo what was done of it."""
        live.note(self.root, change)
        try:
            yield
        except BaseException:
            self.refresh()
            live.recover(self._standing)
            raise
        live.forget(self.root)

    def _build(self) -> None:
        planned = plan_node(self.spec)
        peers = self.peers
        underlay = peers[0].netns(OUTSIDE) if peers else None
        builder.build(self.spec, planned, self.root, underlay)
        self._remember(self.spec, planned)

    def _remember(self, spec: NodeSpec, found: NodeFacts) -> None:
        registry.write_facts(self.root, spec, found)
        self.spec, self._facts, self._stamp = spec, found, registry.stamp(self.name)

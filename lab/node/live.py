"""Changes of a node that is up: a pod more or less, its MTU, its tunnel device, its routes.

A change that consists of several steps is noted in a file before the first step. If it fails or is killed, `restore`
undoes it: the note says what may be half done, node.json says how it should be, and the kernel is made to match.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datapath.base.statefile import read_typed, write_json
from datapath.errors import LinkNotFound
from datapath.kernel.netlink import NetlinkSocket, unless
from lab.node import builder, links
from lab.node.facts import plain
from lab.node.registry import NAMESPACES
from lab.node.topology import MAX_NODES, NODE, OUTSIDE, NodeFacts, NodeSpec, PodFacts
from lab.system import mounts, netns
from lab.system.inhabitants import kill_inhabitants

_NOTE = "unfinished.json"


@dataclass(frozen=True, slots=True)
class Standing:
    """A node that is up: its directory, what was asked for, and what was chosen when it was built."""

    root: Path
    spec: NodeSpec
    facts: NodeFacts

    def netns(self, name: str) -> Path:
        """Return the path of a namespace."""
        return self.root / NAMESPACES / name


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What a change may leave half done: a pod that comes or goes, the tunnel device, the MTU, the node route."""

    pod: PodFacts | None = None
    tunnel: bool = False
    mtu: bool = False
    node_route: bool = False


def note(root: Path, change: Unfinished) -> None:
    """Write down a change that is about to be made."""
    write_json(root / _NOTE, plain(asdict(change)))


def forget(root: Path) -> None:
    """Remove the note of a change that is complete, or undone."""
    (root / _NOTE).unlink()


def is_unfinished(root: Path) -> bool:
    """Tell whether a change of the node is being made, or was left half done by a process that was killed."""
    return (root / _NOTE).exists()


def recover(node: Standing) -> None:
    """Undo what a change has left half done; nobody else may be changing the node meanwhile."""
    if is_unfinished(node.root):
        restore(node, read_typed(Unfinished, node.root / _NOTE))
        forget(node.root)


def restore(node: Standing, change: Unfinished) -> None:
    """Make the kernel match the facts of a node, as far as a change concerned it; doing it twice is not an error."""
    if change.pod is not None and change.pod not in node.facts.pods:
        discard_pod(node, change.pod)
    if change.tunnel:
        replace_tunnel(node)
    if change.mtu:
        set_mtu(node)
    # One that is there is left: the pods may have lost their own routes by now. A reload of everything removes it.
    if change.node_route and not node.spec.endpoint_routes:
        set_node_route(node, True)


def add_pod(node: Standing, pod: PodFacts, *, up: bool) -> None:
    """Make a pod: its namespace, its veth, whose end in the node is `up` or down, and what is inside."""
    builder.add_pod(node.spec, pod, node.root, up=up)


def discard_pod(node: Standing, pod: PodFacts) -> None:
    """Remove all that exists of a pod: its veth, its namespace and the processes in it."""
    with NetlinkSocket(node.netns(NODE)) as socket:
        _delete(socket, pod.ifname)
    path = node.netns(pod.name)
    if path.exists():
        kill_inhabitants({netns.inode(path)})
    # Path.is_mount() sees directories only, and this is a file.
    if os.path.ismount(path):
        mounts.umount(path)
    path.unlink(missing_ok=True)


def replace_tunnel(node: Standing) -> None:
    """Make the tunnel device of the facts, in the place of one with another index; nothing is done if it is there."""
    wanted = node.facts.vxlan
    with NetlinkSocket(node.netns(NODE)) as socket:
        if _ifindex(socket, wanted.name) != wanted.ifindex:
            _delete(socket, wanted.name)
            socket.request(f"make {wanted.name}", links.vxlan(node.spec, wanted))


def _delete(socket: NetlinkSocket, ifname: str) -> None:
    """Delete an interface, by its name: another may have its index by now. No error if it is gone."""
    index = _ifindex(socket, ifname)
    if index is not None:
        unless(errno.ENODEV, socket, f"remove {ifname}", links.delete_link(index))


def _ifindex(socket: NetlinkSocket, ifname: str) -> int | None:
    try:
        return socket.ifindex(ifname)
    except LinkNotFound:
        return None


def set_mtu(node: Standing) -> None:
    """Give all devices the MTU of the spec, in place, and the routes that depend on it."""
    spec, facts = node.spec, node.facts
    devices = [d.ifindex for d in (facts.uplink, facts.cilium_net, facts.cilium_host, facts.vxlan)]
    devices += [pod.ifindex for pod in (facts.health, *facts.pods)]
    # After what they are on, whose MTU is their limit.
    devices += [vlan.ifindex for vlan in spec.vlans]
    with NetlinkSocket(node.netns(OUTSIDE)) as socket:
        socket.request("change the MTU outside", links.set_link_mtu(spec.uplink_peer[1], spec.mtu))
        for vlan in spec.vlans:
            # The bridge of a cluster has the MTU of its smallest port.
            unless(errno.ERANGE, socket, "change the MTU outside", links.set_link_mtu(vlan.ifindex, spec.mtu))
    with NetlinkSocket(node.netns(NODE)) as socket:
        socket.request("change the MTU", *(links.set_link_mtu(index, spec.mtu) for index in devices))
    for pod in (facts.health, *facts.pods):
        with NetlinkSocket(node.netns(pod.name)) as socket:
            socket.request(f"change the MTU in {pod.name}", *links.pod_mtu(spec))


def set_node_route(node: Standing, on: bool) -> None:
    """Install or remove the local node route (pods by cilium_host); doing it twice is not an error."""
    kind = links.RTM_NEWROUTE if on else links.RTM_DELROUTE
    with NetlinkSocket(node.netns(NODE)) as socket:
        for message in links.node_routes(node.spec, node.facts.cilium_host.ifindex, kind):
            if on:
                socket.request("install the node route", message)
            else:
                unless(errno.ESRCH, socket, "remove the node route", message)


def sync_routes(node: Standing, peers: Mapping[int, NodeSpec]) -> None:
    """Install the routes to the pods of other nodes, by their index, and remove those to the pods of all others."""
    with NetlinkSocket(node.netns(NODE)) as socket:
        for peer in peers.values():
            wanted = links.remote_routes(node.spec, node.facts, peer)
            socket.request(f"install the routes to {peer.name}", *wanted)
        for index in set(range(MAX_NODES)) - peers.keys() - {node.spec.node_index}:
            gone = replace(node.spec, node_index=index)
            for message in links.remote_routes(node.spec, node.facts, gone, links.RTM_DELROUTE):
                unless(errno.ESRCH, socket, f"remove the routes to node {index}", message)

"""The time to bring a node up and down, compared with a shell script that makes the same node with `ip -batch`.

The script is as fast as `ip` allows: one batch for all namespaces, one for the node and one per pod, because a batch
stays in one namespace. It leaves out the pods' sysctls, which would need one more process for each pod.
Both sides run in turns, in a mount namespace of their own with an empty /run. Each run waits until the kernel has
cleaned up after the previous one.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import LinkNotFound, ReloadlabError
from datapath.kernel.netlink import NetlinkSocket
from lab.node import links
from lab.node.builder import CILIUM_HOST_SYSCTLS, NODE_SYSCTLS
from lab.node.node import Node
from lab.node.topology import (
    HEALTH,
    NODE,
    OUTSIDE,
    PEER_IFINDEX,
    VXLAN_PORT,
    DeviceFacts,
    NodeFacts,
    NodeSpec,
    PodFacts,
    plan_node,
    random_mac,
)
from lab.results.result import Series
from lab.system import launch, mounts, netns, tools
from lab.system.scratch import scratch

_CLEANUP_TIMEOUT = 60.0
_PREFIX = "reloadlab-bench"
_NODE_LINK = "txqueuelen 1000"


class NotCleanedUp(ReloadlabError):
    """The kernel did not destroy the namespaces of the previous run in time."""


@dataclass(frozen=True, slots=True)
class UpDownTimes:
    """Seconds to bring one node up, and down."""

    up: float
    down: float


@dataclass(frozen=True, slots=True)
class TopologyComparison:
    """All rounds with one number of pods; round i of one side ran right before or after round i of the other."""

    pods: int
    lab: tuple[UpDownTimes, ...]
    script: tuple[UpDownTimes, ...]

    def median(self, side: str, what: str) -> float:
        """Return the median in seconds of `up` or `down` of `lab` or `script`."""
        times: tuple[UpDownTimes, ...] = self.lab if side == "lab" else self.script
        return statistics.median(t.up if what == "up" else t.down for t in times)

    def ratio(self, what: str) -> float:
        """Return the ratio of the script's time to the lab's: the median over the rounds."""
        pairs = zip(self.lab, self.script, strict=True)
        return statistics.median(s.up / ours.up if what == "up" else s.down / ours.down for ours, s in pairs)

    def series(self) -> list[Series]:
        """Return the series of the result; the side that begins changes from round to round."""
        found = []
        for side, times in ((0, self.lab), (1, self.script)):
            positions = tuple((number + side) % 2 for number in range(len(times)))
            group, name = f"{self.pods} pods", ("lab", "script")[side]
            for what, values in (("up", [t.up for t in times]), ("down", [t.down for t in times])):
                found.append(Series(f"{group}: {name} {what}", "s", tuple(values), group=group, positions=positions))
        return found


def measure_topology(pods: Sequence[int], rounds: int, progress: Callable[[str], None]) -> Iterator[TopologyComparison]:
    """Yield a comparison for each number of pods. The caller has called `isolate_mounts`."""
    tools.find("ip")
    for count in pods:
        results: dict[str, list[UpDownTimes]] = {"lab": [], "script": []}
        sides: list[tuple[str, Callable[[int], UpDownTimes]]] = [("lab", _lab), ("script", _script)]
        for number in range(rounds):
            progress(f"{count} pods, round {number + 1} of {rounds}")
            # The side that begins changes from round to round.
            for side, run in sides if number % 2 == 0 else sides[::-1]:
                settle()
                results[side].append(run(count))
        yield TopologyComparison(count, tuple(results["lab"]), tuple(results["script"]))


def start_time() -> float:
    """Return the seconds in which an interpreter starts and imports the lab, which the command `up` adds."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import lab.agent.cluster"
    begin = time.monotonic()
    tools.run([sys.executable, "-P", "-c", code, launch.ROOT])
    return time.monotonic() - begin


def isolate_mounts() -> None:
    """Move this process into a mount namespace of its own with an empty /run; there is no way back.

    Everything that the process makes from then on vanishes with it: namespaces, mounts and directories.
    """
    mounts.leave_mount_namespace()
    mounts.mount("tmpfs", Path("/run"), mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0755")


def _lab(pods: int) -> UpDownTimes:
    spec = NodeSpec(_PREFIX, pods=pods)
    begin = time.monotonic()
    node = Node.up(spec)
    middle = time.monotonic()
    node.down()
    return UpDownTimes(middle - begin, time.monotonic() - middle)


def _script(pods: int) -> UpDownTimes:
    spec = NodeSpec(_PREFIX, pods=pods)
    with scratch() as directory:
        up, down = write_script(spec, plan_node(spec), directory)
        begin = time.monotonic()
        tools.run(["sh", str(up)], timeout=600)
        middle = time.monotonic()
        tools.run(["sh", str(down)], timeout=600)
        return UpDownTimes(middle - begin, time.monotonic() - middle)


def write_script(spec: NodeSpec, facts: NodeFacts, directory: Path) -> tuple[Path, Path]:
    """Write scripts that make and remove the same node, and their batches, to `directory`; return the two paths."""
    names = [NODE, OUTSIDE, HEALTH, *(pod.name for pod in facts.pods)]
    batches = {
        "namespaces": [f"netns add {_namespace(name)}" for name in names],
        NODE: _node_batch(spec, facts),
        OUTSIDE: _outside_batch(spec),
        **{pod.name: _pod_batch(spec, pod) for pod in (facts.health, *facts.pods)},
    }
    for name, lines in batches.items():
        (directory / f"{name}.batch").write_text("\n".join(lines) + "\n")
    settings = "; ".join(f"echo {value} > /proc/sys/net/{name}" for name, value in NODE_SYSCTLS)
    late = "; ".join(f"echo {value} > /proc/sys/net/{name}" for name, value in CILIUM_HOST_SYSCTLS)
    up = [
        "set -e",
        f"ip -batch {directory}/namespaces.batch",
        f"ip netns exec {_namespace(NODE)} sh -c '{settings}; ip -batch {directory}/{NODE}.batch; {late}'",
        *(f"ip -n {_namespace(name)} -batch {directory}/{name}.batch" for name in names[1:]),
    ]
    (directory / "down.batch").write_text("".join(f"netns del {_namespace(name)}\n" for name in names))
    scripts = directory / "up.sh", directory / "down.sh"
    scripts[0].write_text("\n".join(up) + "\n")
    scripts[1].write_text(f"ip -batch {directory}/down.batch\n")
    return scripts


def _namespace(name: str) -> str:
    return f"{_PREFIX}-{os.getpid()}-{name}"


def _veth(spec: NodeSpec, link: DeviceFacts, peer: str, namespace: str) -> list[str]:
    ours = f"link add name {link.name} index {link.ifindex} address {link.mac} mtu {spec.mtu} {_NODE_LINK} type veth"
    theirs = f"peer name {peer} index {PEER_IFINDEX} address {link.peer_mac} mtu {spec.mtu} {_NODE_LINK}"
    return [f"{ours} {theirs} netns {namespace}", f"link set {link.name} up"]


def _node_batch(spec: NodeSpec, facts: NodeFacts) -> list[str]:
    host, net, vxlan, health = facts.cilium_host, facts.cilium_net, facts.vxlan, facts.health
    lines = [
        "link set lo up",
        *_veth(spec, facts.uplink, "eth0", _namespace(OUTSIDE)),
        f"link add name {host.name} index {host.ifindex} address {host.mac} mtu {spec.mtu} {_NODE_LINK} type veth "
        f"peer name {net.name} index {net.ifindex} address {net.mac} mtu {spec.mtu} {_NODE_LINK}",
        f"link set {host.name} arp off up",
        f"link set {net.name} arp off up",
        f"link add name {vxlan.name} index {vxlan.ifindex} address {vxlan.mac} mtu {spec.mtu} "
        f"type vxlan external dstport {VXLAN_PORT}",
        f"link set {vxlan.name} up",
        f"addr add {spec.node4} dev eth0",
        f"addr add {spec.node6} dev eth0 nodad",
        f"addr add {spec.router4}/32 dev {host.name}",
        f"addr add {spec.router6}/128 dev {host.name} nodad",
        f"route add default via {spec.outside4.ip} dev eth0",
        f"route add ::/0 via {spec.outside6.ip} dev eth0",
        f"route add {spec.router4} dev {host.name} scope link",
        f"route add {spec.pod_cidr4} via {spec.router4} dev {host.name} src {spec.router4} proto kernel",
        f"route add {spec.pod_cidr6} dev {host.name} src {spec.router6} proto kernel",
    ]
    for pod in (health, *facts.pods):
        link = DeviceFacts(pod.ifname, pod.ifindex, pod.node_mac, pod.mac)
        lines += _veth(spec, link, pod.inner_ifname, _namespace(pod.name))
    return lines


def _outside_batch(spec: NodeSpec) -> list[str]:
    return [
        "link set lo up",
        "link set eth0 up",
        f"addr add {spec.outside4} dev eth0",
        f"addr add {spec.outside6} dev eth0 nodad",
        f"route add {spec.pod_cidr4} via {spec.node4.ip}",
        f"route add {spec.pod_cidr6} via {spec.node6.ip}",
    ]


def _pod_batch(spec: NodeSpec, pod: PodFacts) -> list[str]:
    device = pod.inner_ifname
    return [
        "link set lo up",
        f"link set {device} up",
        f"addr add {pod.ipv4}/32 dev {device}",
        f"addr add {pod.ipv6}/128 dev {device} nodad",
        f"route add {spec.router4} dev {device} scope link",
        f"route add {spec.router6} dev {device}",
        f"route add default via {spec.router4} dev {device} mtu {spec.route_mtu}",
        f"route add ::/0 via {spec.router6} dev {device} mtu {spec.route_mtu}",
    ]


def settle() -> None:
    """Wait until the kernel has destroyed all namespaces that are no longer in use.

    It destroys them in the order of their release. One more namespace, with the far end of a veth, is released last:
    when the near end vanishes, all others are gone.
    """
    with scratch() as directory, _in_thread_namespace(directory / "near") as near:
        with _in_thread_namespace(directory / "far") as far:
            link = DeviceFacts("barrier", 2, random_mac(), random_mac())
            descriptor = os.open(far, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with NetlinkSocket(near) as socket:
                    socket.request("create barrier", links.veth(NodeSpec("barrier", 0), link, "eth0", descriptor))
            finally:
                os.close(descriptor)
        with NetlinkSocket(near) as socket:
            _wait_until_gone(socket, link.name)


def _wait_until_gone(socket: NetlinkSocket, ifname: str) -> None:
    deadline = time.monotonic() + _CLEANUP_TIMEOUT
    while time.monotonic() < deadline:
        try:
            socket.ifindex(ifname)
        except LinkNotFound:
            return
        time.sleep(0.005)
    raise NotCleanedUp(f"the kernel did not destroy its namespaces within {_CLEANUP_TIMEOUT:g} s")


@contextmanager
def _in_thread_namespace(path: Path) -> Iterator[Path]:
    """Make a namespace at `path` in a thread of its own, and release it at the end of the block."""
    thread = threading.Thread(target=lambda: os.close(netns.new_netns(path)))
    thread.start()
    thread.join()
    try:
        yield path
    finally:
        mounts.umount(path)

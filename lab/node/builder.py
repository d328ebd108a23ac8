"""Builds the inside of a lab: two disposable threads make the namespaces, and what is in them from inside.

A namespace is made by the thread that enters it (unshare), the netlink socket for it is opened while the thread is
inside. Two threads, because creating a namespace is 60 % of the work and the kernel makes two of them at once; more
would only queue for the kernel's network lock.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event

from datapath.errors import NetlinkError, ReloadlabError
from datapath.kernel.netlink import NetlinkSocket, link_down, unless
from lab.node import links
from lab.node.registry import NAMESPACES
from lab.node.topology import HEALTH, NODE, OUTSIDE, NodeFacts, NodeSpec, PodFacts
from lab.system.mounts import bind_mount
from lab.system.netns import enter, new_netns, sysctl

THREADS = 2

# Set before there are links: they inherit the defaults, which saves a write per link.
_NO_DAD = (("ipv6/conf/default/accept_dad", "0"),)
# Multicast listeners report to their links twice within this many milliseconds: done before there are programs to meet.
_REPORTS_AT_ONCE = (("ipv6/conf/default/mldv2_unsolicited_report_interval", "10"),)
# Every packet that nobody listens for is refused, so that traffic can count on it. The kernel limits the types of its
# masks, for each receiver and, whatever icmp_ratelimit says, for all together (icmp_msgs_per_sec). No message has the
# type 127.
_ALL_REFUSALS = (("ipv4/icmp_ratemask", "0"), ("ipv6/icmp/ratemask", "127"))
NODE_SYSCTLS = (
    *_NO_DAD,
    *_REPORTS_AT_ONCE,
    *_ALL_REFUSALS,
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/fib_multipath_use_neigh", "1"),
)
CILIUM_HOST_SYSCTLS = tuple(
    (f"ipv4/conf/{device}/{name}", value)
    for device in ("cilium_host", "cilium_net")
    for name, value in (("accept_local", "1"), ("send_redirects", "0"))
)
# A pod has its addresses and its gateway: it needs no router advertisement, and its questions would only be drops.
POD_SYSCTLS = (*_NO_DAD, *_REPORTS_AT_ONCE, *_ALL_REFUSALS, ("ipv6/conf/default/router_solicitations", "0"))
OUTSIDE_SYSCTLS = (*POD_SYSCTLS, ("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0"))


class NoVlanDevices(ReloadlabError):
    """A kernel that makes no VLAN devices."""

    def __init__(self) -> None:
        super().__init__("the kernel makes no VLAN devices: needs CONFIG_VLAN_8021Q")


Job = Callable[[NetlinkSocket], None]
"""Builds one piece; is given a socket of its thread's own in the node's namespace."""


def build(spec: NodeSpec, facts: NodeFacts, root: Path, underlay: Path | None = None) -> None:
    """Make all namespaces of a node below `root`, and everything in them.

    `underlay` is the path of the common underlay in another node of its cluster; None makes a new one.

    Raises NetlinkError and OSError. The caller then removes what was made so far, by detaching the whole tree.
    """
    directory = root / NAMESPACES
    node = directory / NODE
    if spec.cluster:
        _share_underlay(spec, directory / OUTSIDE, underlay)

    def make_node_namespace() -> None:
        with _namespace(node, NODE_SYSCTLS):
            pass

    def build_node(_: NetlinkSocket) -> None:
        _build_node(spec, facts, directory)

    def pod_job(pod: PodFacts) -> Job:
        return lambda socket: build_pod(spec, pod, directory, socket)

    _in_threads([make_node_namespace])
    jobs: SimpleQueue[Job] = SimpleQueue()
    for job in chain([build_node], map(pod_job, facts.pods)):
        jobs.put(job)
    stop = Event()

    def work() -> None:
        with NetlinkSocket(node) as socket:
            while not stop.is_set():
                try:
                    job = jobs.get_nowait()
                except Empty:
                    return
                job(socket)

    _in_threads([work] * min(THREADS, 1 + len(facts.pods)), stop)


def add_pod(spec: NodeSpec, pod: PodFacts, root: Path, *, up: bool) -> None:
    """Make one more pod in a node that is up, its interface `up` or down."""

    def work() -> None:
        with NetlinkSocket(root / NAMESPACES / NODE) as socket:
            build_pod(spec, pod, root / NAMESPACES, socket, up=up)

    _in_threads([work])


def build_pod(spec: NodeSpec, pod: PodFacts, directory: Path, node: NetlinkSocket, *, up: bool = True) -> None:
    """Make a pod's namespace, its veth, and what is inside. The calling thread ends up in that namespace."""
    with _namespace(directory / pod.name, POD_SYSCTLS) as (descriptor, inside):
        down = () if up else (link_down(pod.ifindex),)
        node.request(f"create {pod.ifname} for {pod.name}", links.pod_devices(spec, pod, descriptor), *down)
        inside.request(f"configure {pod.name}", *links.pod_inside(spec, pod))


def _share_underlay(spec: NodeSpec, path: Path, underlay: Path | None) -> None:
    """Make the underlay of a cluster, or bind that of another node of the cluster to `path` as well.

    The kernel counts the binds: the underlay goes with the last node.
    """

    def make() -> None:
        with _namespace(path, OUTSIDE_SYSCTLS) as (_, inside):
            inside.request("configure the underlay", *links.underlay_inside(spec))

    if underlay is None:
        _in_threads([make])
    else:
        path.touch(mode=0o600, exist_ok=False)
        bind_mount(str(underlay), path)


@contextmanager
def _joined(path: Path) -> Iterator[tuple[int, NetlinkSocket]]:
    """Give (a descriptor of a namespace that exists, a socket in it), both for the time of the block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with NetlinkSocket(path) as socket:
            yield descriptor, socket
    finally:
        os.close(descriptor)


def _build_node(spec: NodeSpec, facts: NodeFacts, directory: Path) -> None:
    path = directory / OUTSIDE
    with (
        _joined(path) if spec.cluster else _namespace(path, OUTSIDE_SYSCTLS) as (outside_fd, outside),
        _namespace(directory / HEALTH, POD_SYSCTLS) as (health_fd, health),
    ):
        if spec.cluster:
            # Of a node of this index that was removed a moment ago: the kernel frees its links asynchronously.
            unless(errno.ENODEV, outside, "remove a stale port", links.delete_link(spec.uplink_peer[1]))
        with enter(directory / NODE), NetlinkSocket() as node:
            node.request("configure the node", *links.node_inside(spec, facts, outside_fd, health_fd))
            sysctl(CILIUM_HOST_SYSCTLS)
        health.request("configure the health endpoint", *links.pod_inside(spec, facts.health))
        outside.request("configure the outside", *(links.underlay_port if spec.cluster else links.outside_inside)(spec))
        if spec.vlans:
            with NetlinkSocket(directory / NODE) as node:
                _build_vlans(spec, facts, node, outside)


def _build_vlans(spec: NodeSpec, facts: NodeFacts, node: NetlinkSocket, outside: NetlinkSocket) -> None:
    try:
        for vlan in spec.vlans:
            node.request(f"make {vlan.name}", *links.vlan_inside(facts, vlan))
            for message in links.vlan_outside(spec, vlan):
                # Another node of the cluster may have made it.
                unless(errno.EEXIST, outside, f"make the other end of {vlan.name}", message)
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise NoVlanDevices from error


@contextmanager
def _namespace(path: Path, settings: Sequence[tuple[str, str]]) -> Iterator[tuple[int, NetlinkSocket]]:
    """Make a namespace and give (a descriptor of it, a socket in it), both for the time of the block."""
    descriptor = new_netns(path)
    try:
        sysctl(settings)
        with NetlinkSocket() as socket:
            yield descriptor, socket
    finally:
        os.close(descriptor)


def _in_threads(functions: Sequence[Callable[[], None]], stop: Event | None = None) -> None:
    """Run functions in threads that end afterwards, in whatever namespace they are then; raise the first error.

    When one fails, or when the caller is interrupted, `stop` tells the others to end.
    """
    with ThreadPoolExecutor(len(functions), thread_name_prefix="build") as pool:
        futures: list[Future[None]] = [pool.submit(function) for function in functions]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if stop is not None and not all(future.done() and future.exception() is None for future in futures):
                stop.set()
    for future in futures:
        future.result()

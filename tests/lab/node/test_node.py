"""A node that stands, compared with what Cilium makes of one (its links, addresses, routes and sysctls)."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from datapath.endpoint import LABEL_HOST, Endpoint
from datapath.errors import InvalidName, LinkNotFound, NetlinkError
from datapath.kernel.netlink import NetlinkSocket
from lab.errors import LabBusy, LabNotFound, LabSystemError, Status
from lab.node import node as node_module
from lab.node import registry
from lab.node.builder import NoVlanDevices
from lab.node.node import Node, UnknownTarget
from lab.node.topology import InvalidSpec, NodeFacts, NodeSpec, PodSpec, plan_node
from lab.system import netns
from lab.system.tools import run
from tests.lab.labs import ip, mounts_of, removed, sysctl, unique_name
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

PODS = (PodSpec("pod-1"), PodSpec("web", identity=5000, labels=frozenset({"k8s:app=web"})))


@pytest.fixture(scope="module", params=[False, True], ids=["native, node route", "tunnel, endpoint routes"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    other = bool(request.param)
    spec = NodeSpec(
        unique_name(),
        pods=PODS,
        tunnel=other,
        endpoint_routes=other,
        mtu=9000 if other else 1500,
        node_index=3 if other else 0,
        devices=("eth0",),
    )
    with Node(spec) as node:
        yield node


def links(path: Path) -> dict[str, dict[str, Any]]:
    """Return the links of a namespace by name."""
    return {link["ifname"]: link for link in ip(path, "link")}


def addresses(path: Path, device: str) -> list[str]:
    """Return the addresses of a device that were given to it; none may still be tentative."""
    (found,) = ip(path, "addr", "show", "dev", device)
    assert not any(info.get("tentative") or info.get("dadfailed") for info in found["addr_info"])
    return [f"{a['local']}/{a['prefixlen']} {a['scope']}" for a in found["addr_info"] if a["scope"] != "link"]


def routes(path: Path, *family: str) -> set[str]:
    """Return the main table in few words: destination, gateway, device, source, protocol, scope, MTU."""
    found = set()
    for route in ip(path, *family, "route", "show", "table", "main"):
        if route["dst"].startswith("fe80:"):
            continue
        mtu = route.get("metrics", [{}])[0].get("mtu")
        words = [
            route["dst"],
            f"via {route['gateway']}" if "gateway" in route else "",
            route["dev"],
            f"src {route['prefsrc']}" if "prefsrc" in route else "",
            route["protocol"],
            route.get("scope", "global") if not family else "",
            f"mtu {mtu}" if mtu else "",
        ]
        found.add(" ".join(filter(None, words)))
    return found


def is_local_random(mac: str) -> bool:
    return int(mac[:2], 16) & 0b11 == 0b10


def test_links_of_the_node(node: Node) -> None:
    found = links(node.netns("node"))
    names = [
        "lo",
        "eth0",
        "cilium_net",
        "cilium_host",
        "cilium_vxlan",
        "lxc_health",
        *(pod.ifname for pod in node.pods),
    ]
    assert list(found) == names
    for name in names[1:]:
        assert {"UP", "LOWER_UP"} <= set(found[name]["flags"]), name
        assert (found[name]["mtu"], found[name]["txqlen"]) == (node.spec.mtu, 1000), name
        assert is_local_random(found[name]["address"]), name
    assert len({found[name]["address"] for name in names[1:]}) == len(names) - 1


def test_cilium_host_and_cilium_net(node: Node) -> None:
    path, facts = node.netns("node"), node.facts
    found = links(path)
    host, net = found["cilium_host"], found["cilium_net"]
    assert (host["link"], net["link"]) == ("cilium_net", "cilium_host")
    assert host["linkinfo"]["info_kind"] == net["linkinfo"]["info_kind"] == "veth"
    assert "NOARP" in host["flags"]
    assert "NOARP" in net["flags"]
    assert (host["address"], host["ifindex"]) == (facts.cilium_host.mac, facts.cilium_host.ifindex)
    assert (net["address"], net["ifindex"]) == (facts.cilium_net.mac, facts.cilium_net.ifindex)
    assert addresses(path, "cilium_host") == [f"{node.spec.router4}/32 global", f"{node.spec.router6}/128 global"]
    assert addresses(path, "cilium_net") == []
    for device in ("cilium_host", "cilium_net"):
        for name, value in (("forwarding", "1"), ("rp_filter", "0"), ("accept_local", "1"), ("send_redirects", "0")):
            assert sysctl(path, f"ipv4/conf/{device}/{name}") == value, (device, name)
        assert sysctl(path, f"ipv6/conf/{device}/forwarding") == "1"


def test_tunnel_device(node: Node) -> None:
    path = node.netns("node")
    vxlan = links(path)["cilium_vxlan"]
    assert vxlan["linkinfo"]["info_kind"] == "vxlan"
    data = vxlan["linkinfo"]["info_data"]
    assert (data["external"], data["port"], data["learning"]) == (True, 8472, False)
    assert (vxlan["address"], vxlan["ifindex"]) == (node.facts.vxlan.mac, node.facts.vxlan.ifindex)
    assert sysctl(path, "ipv4/conf/cilium_vxlan/forwarding") == "1"
    assert sysctl(path, "ipv6/conf/cilium_vxlan/forwarding") == "1"
    assert addresses(path, "cilium_vxlan") == []


def test_sysctls_of_the_node(node: Node) -> None:
    path = node.netns("node")
    wanted = {"ipv4/conf/all/rp_filter": "0", "ipv4/fib_multipath_use_neigh": "1", "ipv6/conf/all/disable_ipv6": "0"}
    wanted |= {f"ipv4/conf/{pod.ifname}/rp_filter": "0" for pod in (node.facts.health, *node.pods)}
    assert {name: sysctl(path, name) for name in wanted} == wanted


def test_routes_of_the_node(node: Node) -> None:
    spec, path = node.spec, node.netns("node")
    wanted4 = {
        f"default via {spec.outside4.ip} eth0 boot global",
        f"{spec.node4.network} eth0 src {spec.node4.ip} kernel link",
    }
    wanted6 = {
        f"default via {spec.outside6.ip} eth0 boot",
        f"{spec.node6.network} eth0 kernel",
        f"{spec.router6} cilium_host kernel",
    }
    if not spec.endpoint_routes:
        wanted4 |= {
            f"{spec.router4} cilium_host boot link",
            f"{spec.pod_cidr4} via {spec.router4} cilium_host src {spec.router4} kernel global",
        }
        wanted6.add(f"{spec.pod_cidr6} cilium_host src {spec.router6} kernel")
    assert routes(path) == wanted4
    assert routes(path, "-6") == wanted6


@pytest.mark.parametrize("name", ["pod-1", "web", "health"])
def test_inside_of_a_pod(node: Node, name: str) -> None:
    spec, path, pod = node.spec, node.netns(name), node.pod(name)
    device = "cilium" if name == "health" else "eth0"
    found = links(path)
    assert list(found) == ["lo", device]
    link = found[device]
    assert {"UP", "LOWER_UP"} <= set(link["flags"])
    assert "UP" in found["lo"]["flags"]
    assert (link["address"], link["mtu"], link["txqlen"]) == (pod.mac, spec.mtu, 1000)
    assert is_local_random(pod.mac)
    assert link["link_index"] == pod.ifindex
    outer = links(node.netns("node"))[pod.ifname]
    assert (outer["ifindex"], outer["address"], outer["link_index"]) == (pod.ifindex, pod.node_mac, link["ifindex"])
    assert addresses(path, device) == [f"{pod.ipv4}/32 global", f"{pod.ipv6}/128 global"]
    assert addresses(node.netns("node"), pod.ifname) == []
    assert routes(path) == {
        f"{spec.router4} {device} boot link",
        f"default via {spec.router4} {device} boot global mtu {spec.route_mtu}",
    }
    assert routes(path, "-6") == {
        f"{pod.ipv6} {device} kernel",
        f"{spec.router6} {device} boot",
        f"default via {spec.router6} {device} boot mtu {spec.route_mtu}",
    }
    assert ip(path, "neigh", "show", "nud", "permanent") == []


def test_outside(node: Node) -> None:
    spec, path = node.spec, node.netns("outside")
    assert addresses(path, "eth0") == [f"{spec.outside4} global", f"{spec.outside6} global"]
    assert f"{spec.pod_cidr4} via {spec.node4.ip} eth0 boot global" in routes(path)
    assert f"{spec.pod_cidr6} via {spec.node6.ip} eth0 boot" in routes(path, "-6")


@pytest.mark.parametrize("version", [4, 6])
def test_outside_and_node_reach_each_other_at_once(node: Node, version: int) -> None:
    spec = node.spec
    outside, router = (spec.outside4.ip, spec.router4) if version == 4 else (spec.outside6.ip, spec.router6)
    for sender, receiver, address in (("node", "outside", outside), ("outside", "node", router)):
        with ExitStack() as stack:
            there = stack.enter_context(udp(node.netns(receiver), version))
            here = stack.enter_context(udp(node.netns(sender), version))
            there.bind((str(address), 0))
            there.settimeout(5)
            here.sendto(b"hello", there.getsockname()[:2])
            assert there.recv(16) == b"hello"


def udp(path: Path, version: int) -> socket.socket:
    with netns.enter(path):
        return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)


def test_endpoints(node: Node) -> None:
    on = node.spec.endpoint_routes
    host, health, first, web = node.endpoints()
    facts = node.facts
    assert (host.id, host.ifname, host.identity, host.is_host) == (1, "cilium_host", 1, True)
    assert (host.mac, host.node_mac) == (facts.cilium_host.mac, facts.cilium_host.mac)
    assert (host.ipv4, host.ipv6, host.require_routing) == (node.spec.router4, node.spec.router6, True)
    assert host.labels == frozenset({LABEL_HOST})
    assert (health.ifname, health.identity) == ("lxc_health", 4)
    assert (web.identity, web.labels) == (5000, frozenset({"k8s:app=web"}))
    assert len({endpoint.id for endpoint in node.endpoints()}) == 4
    for endpoint in (health, first, web):
        modes = (endpoint.require_egress_prog, endpoint.require_endpoint_route, endpoint.require_routing)
        assert modes == (on, on, not on)
    pod = node.pods[0]
    assert (first.mac, first.node_mac, first.ipv4, first.ipv6) == (pod.mac, pod.node_mac, pod.ipv4, pod.ipv6)
    assert first == node.endpoint("pod-1")
    with pytest.raises(UnknownTarget, match="no endpoint nope; it has pod-1, web, health, host"):
        node.endpoint("nope")


def test_datapath_config(node: Node) -> None:
    config = node.datapath_config(Path("/usr/src/bpf"), clang="clang-16", node_options=(("A", "1"),))
    facts, tunnel = node.facts, node.spec.tunnel
    assert (config.library, config.clang, config.devices) == (Path("/usr/src/bpf"), "clang-16", ("eth0",))
    assert node.datapath_config().library.is_dir()
    assert config.netns == node.netns("node")
    assert config.bpffs.is_mount()
    assert config.bpffs.parent == config.state.parent == node.root
    assert config.node.cilium_host_ifindex == facts.cilium_host.ifindex
    assert config.node.cilium_host_mac == facts.cilium_host.mac
    assert config.node.cilium_net_ifindex == facts.cilium_net.ifindex
    assert config.node.cilium_net_mac == facts.cilium_net.mac
    assert config.node.encap_ifindex == (facts.vxlan.ifindex if tunnel else None)
    assert config.node.encap_mac == (facts.vxlan.mac if tunnel else None)
    assert (config.node.mtu, config.node.endpoint_routes) == (node.spec.mtu, node.spec.endpoint_routes)
    assert config.node.options == (("A", "1"),)


def test_open_finds_the_same_node(node: Node) -> None:
    found = Node.open(node.name)
    assert (found.spec, found.facts, found.root) == (node.spec, node.facts, node.root)
    assert found.endpoints() == node.endpoints()
    with pytest.raises(UnknownTarget, match=f"lab {node.name} has no pod-7; it has node, health, outside, pod-1, web"):
        found.netns("pod-7")
    with pytest.raises(UnknownTarget):
        found.netns("../ns/node")


def test_node_in_use_stays(node: Node) -> None:
    with pytest.raises(LabBusy):
        Node.open(node.name).down()
    assert node.netns("node").exists()


def test_node_that_was_never_built() -> None:
    node = Node(NodeSpec(unique_name()))
    with pytest.raises(LabNotFound, match=node.name):
        _ = node.facts
    with pytest.raises(LabNotFound):
        Node.open(node.name)
    with pytest.raises(InvalidName):
        Node.open("a/b")


def test_node_goes_with_everything() -> None:
    with ExitStack() as stack:
        with Node(NodeSpec(unique_name(), pods=3)) as node:
            held = os.open(node.netns("node"), os.O_RDONLY)
            stack.callback(os.close, held)
            assert len(namespaces(node)) == 6
        assert not node.root.exists()
        assert mounts_of(node.name) == []
        assert node.name not in {lab.name for lab in registry.list_labs()}
        # This end of a veth vanishes when the kernel destroys the namespace of the other one: none is held by us.
        with NetlinkSocket(Path(f"/proc/{os.getpid()}/fd/{held}")) as sock:
            for ifname in ("eth0", "lxc_health", *(pod.ifname for pod in node.pods)):
                assert vanishes(sock, ifname), ifname


def vanishes(sock: NetlinkSocket, ifname: str) -> bool:
    """Wait until a link is gone; the kernel may take its time, but not this long."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            sock.ifindex(ifname)
        except LinkNotFound:
            return True
        time.sleep(0.01)
    return False


def namespaces(node: Node) -> set[int]:
    return {netns.inode(node.netns(name)) for name in node.namespaces}


def test_failure_inside_takes_the_node_away() -> None:
    node = Node(NodeSpec(unique_name()))
    with pytest.raises(KeyError), node:
        raise KeyError
    assert not node.root.exists()


def test_two_nodes_side_by_side_do_not_meet() -> None:
    with Node(NodeSpec(unique_name(), pods=2)) as one, Node(NodeSpec(unique_name(), pods=2)) as two:
        assert not namespaces(one) & namespaces(two)
        assert one.datapath_config().bpffs.stat().st_dev != two.datapath_config().bpffs.stat().st_dev
        (one.datapath_config().bpffs / "pin").mkdir()
        assert not (two.datapath_config().bpffs / "pin").exists()
        one_links, two_links = links(one.netns("node")), links(two.netns("node"))
        # The devices that programs know by their MACs have the same ones in each lab.
        assert not {v["address"] for k, v in one_links.items() if k.startswith("lxc")} & {
            v["address"] for v in two_links.values()
        }
    assert not one.root.exists()
    assert not two.root.exists()


def test_nothing_in_our_own_namespace() -> None:
    forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    with Node(NodeSpec(unique_name(), pods=2)) as node:
        there, here = links(node.netns("node")), links(Path("/proc/self/ns/net"))
        assert not {link["address"] for link in here.values()} & {
            link["address"] for name, link in there.items() if name != "lo"
        }
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == forwarding


@pytest.fixture
def small() -> Iterator[Node]:
    with removed(unique_name()) as name:
        yield Node.up(NodeSpec(name, pods=2))


def test_switching_the_routing_mode(small: Node) -> None:
    path, spec = small.netns("node"), small.spec
    node4 = f"{spec.pod_cidr4} via {spec.router4} cilium_host src {spec.router4} kernel global"
    before4, before6 = routes(path), routes(path, "-6")
    assert node4 in before4
    for _ in range(2):
        small.set_endpoint_routes(True)
        assert not any("cilium_host" in route for route in routes(path))
        assert routes(path, "-6") == before6 - {f"{spec.pod_cidr6} cilium_host src {spec.router6} kernel"}
        assert Node.open(small.name).spec.endpoint_routes
        assert Node.open(small.name).endpoint("pod-1").require_egress_prog
    for _ in range(2):
        small.set_endpoint_routes(False)
        assert (routes(path), routes(path, "-6")) == (before4, before6)
        assert not Node.open(small.name).spec.endpoint_routes


def test_pods_come_and_go(small: Node) -> None:
    first = small.pods[0]
    small.remove_pod("pod-1")
    assert first.ifname not in links(small.netns("node"))
    assert not (small.root / "ns" / "pod-1").exists()
    with pytest.raises(UnknownTarget):
        small.endpoint("pod-1")
    late = small.add_pod(PodSpec("late", identity=777))
    assert (late.ipv4, late.ipv6) == (IPv4Address("10.244.0.5"), IPv6Address("fd00:10:244::5"))
    assert links(small.netns("late"))["eth0"]["address"] == late.mac
    assert [pod.name for pod in Node.open(small.name).pods] == ["pod-2", "late"]
    assert Node.open(small.name).endpoint("late").identity == 777
    with pytest.raises(InvalidSpec, match="two pods are called late"):
        small.add_pod("late")
    with pytest.raises(InvalidSpec, match="health endpoint"):
        small.remove_pod("health")


def test_pod_that_cannot_be_made_leaves_nothing(small: Node) -> None:
    taken = small.root / "ns" / "new"
    taken.write_text("")
    with pytest.raises(LabSystemError, match="File exists"):
        small.add_pod("new")
    assert [pod.name for pod in Node.open(small.name).pods] == ["pod-1", "pod-2"]
    assert len(links(small.netns("node"))) == 8


def test_failure_in_a_thread_ends_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pods that want the same interface: the kernel refuses the second one."""
    name = unique_name()

    def clash(spec: NodeSpec, *_: Callable[[int], bytes]) -> NodeFacts:
        facts = plan_node(spec)
        return replace(facts, pods=(*facts.pods[:-1], replace(facts.pods[-1], ifindex=facts.pods[0].ifindex)))

    monkeypatch.setattr(node_module, "plan_node", clash)
    with pytest.raises(NetlinkError, match=r"create lxc\w+ for pod-20: "):
        Node.up(NodeSpec(name, pods=20))
    assert not registry.lab_root(name).exists()
    assert mounts_of(name) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("build")]


def test_endpoint_is_a_value(node: Node) -> None:
    assert isinstance(node.endpoint("web"), Endpoint)
    assert hash(node.endpoint("web")) == hash(Node.open(node.name).endpoint("web"))


def test_a_kept_node_stays_when_its_context_ends() -> None:
    """Anybody can use and remove it then, and nobody sweeps it away."""
    with removed(unique_name("kept")) as name:
        with Node(NodeSpec(name, pods=0)) as node:
            node.keep()
            node.keep()
            registry.sweep()
        (lab,) = [lab for lab in registry.list_labs() if lab.name == name]
        assert (lab.status, lab.is_left_over, lab.pids) == (Status.UP, False, ())
        registry.sweep()
        assert Node.open(name).spec.name == name


def vlan_specs() -> list[NodeSpec]:
    """Return two nodes of a cluster with a VLAN in common; the second has another one as well."""
    name = unique_name()
    common = NodeSpec(f"{name}-1", pods=0, cluster=name, devices=("eth0", "eth0.100"))
    return [common, replace(common, name=f"{name}-2", node_index=1, devices=("eth0.4094", "eth0.100"))]


def test_vlan_devices_of_a_cluster() -> None:
    """The nodes and the outside reach each other over a VLAN; the devices follow the MTU, up and down."""
    with ExitStack() as stack:
        try:
            nodes = [stack.enter_context(Node(spec)) for spec in vlan_specs()]
        except NoVlanDevices as error:
            pytest.skip(str(error))
        for node in nodes:
            for vlan in node.spec.vlans:
                (shown,) = ip(node.netns("node"), "-details", "link", "show", "dev", vlan.name)
                assert (shown["ifindex"], shown["link"]) == (vlan.ifindex, "eth0")
                assert (shown["linkinfo"]["info_kind"], shown["linkinfo"]["info_data"]["id"]) == ("vlan", vlan.id)
                expected = [f"{address} global" for address in (vlan.node4, vlan.node6)]
                assert addresses(node.netns("node"), vlan.name) == expected
        first, second = (next(vlan for vlan in node.spec.vlans if vlan.id == 100) for node in nodes)
        for address in (second.node4.ip, second.node6.ip, first.outside4.ip, first.outside6.ip):
            run(nsenter(nodes[0].netns("node"), "ping", "-c", "1", "-W", "2", str(address)))
        for mtu in (9000, 1400):
            for node in nodes:
                node.set_mtu(mtu)
            for node in nodes:
                assert {links(node.netns("node"))[vlan.name]["mtu"] for vlan in node.spec.vlans} == {mtu}
            assert {links(nodes[0].netns("outside"))[f"underlay.{number}"]["mtu"] for number in (100, 4094)} <= {
                1500,
                mtu,
            }


def test_kernel_without_vlan_devices() -> None:
    """Is told in one line, and nothing is left of the node."""
    spec, said = replace(vlan_specs()[0], cluster=""), "^the kernel makes no VLAN devices: needs CONFIG_VLAN_8021Q$"
    with pytest.raises(NoVlanDevices, match=said), Node(spec):
        pytest.skip("the kernel makes VLAN devices")
    assert not registry.lab_root(spec.name).exists()

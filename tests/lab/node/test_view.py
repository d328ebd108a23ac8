from __future__ import annotations

import json

import pytest

from datapath.base.bpftypes import ProgType
from datapath.errors import ToolError
from datapath.kernel import bpf, xdp
from datapath.kernel.inventory import program_by_id, program_name
from datapath.kernel.netlink import NetlinkSocket
from lab.cli.drawing import draw
from lab.node.links import delete_link
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec
from lab.node.view import look
from lab.system.tools import run
from tests.datapath.support import XDP_PASS, program, until
from tests.lab.labs import ip, unique_name
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


def test_view_and_drawing() -> None:
    with Node(NodeSpec(unique_name(), pods=2, tunnel=True)) as node:
        view = look(node)
        spec, facts = node.spec, node.facts
        document = json.loads(json.dumps(view.to_json()))
        drawing = draw(view)
        assert [link["name"] for link in document["interfaces"]] == [
            link["ifname"] for link in ip(node.netns("node"), "link") if link["ifname"] != "lo"
        ]
    by_name = {link["name"]: link for link in document["interfaces"]}
    assert by_name["cilium_host"]["addresses"] == [f"{spec.router4}/32", f"{spec.router6}/128"]
    assert (by_name["cilium_host"]["noarp"], by_name["cilium_vxlan"]["kind"]) == (True, "vxlan")
    assert f"{spec.pod_cidr4} via {spec.router4} dev cilium_host src {spec.router4} proto kernel" in document["routes"]
    assert f"{spec.pod_cidr6} dev cilium_host src {spec.router6} proto kernel" in document["routes"]
    assert [pod["name"] for pod in document["pods"]] == ["pod-1", "pod-2"]
    assert document["outside"][0]["addresses"] == [str(spec.outside4), str(spec.outside6)]
    assert document["inside"]["pod-1"][0]["addresses"] == [f"{facts.pods[0].ipv4}/32", f"{facts.pods[0].ipv6}/128"]
    for words in (
        f"{node.name}: 2 pods, VXLAN tunnel, node route by cilium_host, MTU 1500 (pods' default route 1450)",
        f"default via {spec.outside4.ip} dev eth0",
        f"{facts.cilium_host.mac}  NOARP",
        f"veth to cilium_net  {facts.cilium_host.mac}",
        "veth to outside/eth0",
        "vxlan, port 8472",
        f"     {spec.router4}/32  {spec.router6}/128",
        f"{facts.pods[1].ifname} ── eth0   pod-2   id {facts.pods[1].endpoint_id}  {facts.pods[1].ipv4} ",
    ):
        assert words in drawing
    # The lines of a box are equally long.
    assert len({len(line) for line in drawing.splitlines() if line.startswith("│")}) == 2
    assert max(map(len, drawing.splitlines()[1:])) <= 80


def test_links_and_routes_are_those_of_ip() -> None:
    """With a bridge, whose port has another end that no namespace of the lab has, and a tunnel of another port."""
    spec, other = NodeSpec(unique_name(), pods=1, tunnel=True, tunnel_port=8473), NodeSpec(unique_name(), pods=0)
    with Node(spec) as node, Node(other) as elsewhere:
        netns = node.netns(NODE)
        ip(netns, "link", "add", "br0", "type", "bridge")
        ip(netns, "link", "add", "p0", "mtu", "1400", "type", "veth", "peer", "name", "p1")
        ip(netns, "link", "set", "p1", "netns", str(elsewhere.netns(NODE)))
        ip(netns, "link", "set", "p0", "master", "br0")
        ip(netns, "route", "add", "blackhole", "192.0.2.0/24")
        view = look(node)
        shown = [each for each in ip(netns, "link") if each["link_type"] != "loopback"]
        routes = [*ip(netns, "route"), *ip(netns, "-6", "route")]
    links = {each["ifname"]: each for each in shown}
    assert [link.name for link in view.links] == list(links)
    for link in view.links:
        told = links[link.name]
        assert (link.ifindex, link.mtu, link.up) == (told["ifindex"], told["mtu"], "UP" in told["flags"])
        assert (link.kind, link.master) == (told["linkinfo"]["info_kind"], told.get("master"))
        assert link.port == told["linkinfo"].get("info_data", {}).get("port")
    ends = {link.name: None if link.peer is None else (link.peer.namespace, link.peer.name) for link in view.links}
    assert ends["cilium_host"] == (NODE, "cilium_net")
    assert ends[node.pods[0].ifname] == ("pod-1", "eth0")
    assert (ends["p0"], ends["cilium_vxlan"]) == (None, None)
    wanted = {
        (each["dst"], each.get("dev"), each.get("gateway")) for each in routes if not each["dst"].startswith("fe80")
    }
    assert {(route.destination, route.dev, route.via) for route in view.routes} == wanted


def test_a_device_on_another_names_it() -> None:
    with Node(NodeSpec(unique_name(), pods=0)) as node:
        try:
            ip(node.netns(NODE), "link", "add", "name", "above", "link", "eth0", "type", "macvlan")
        except ToolError as error:
            pytest.skip(f"needs CONFIG_MACVLAN: {error}")
        view = look(node)
    (link,) = (link for link in view.links if link.name == "above")
    assert (link.kind, link.parent, link.peer) == ("macvlan", "eth0", None)
    assert "above            macvlan on eth0  " in draw(view)


def test_xdp_program_that_is_replaced_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name cannot be had any more: the hook is looked at again."""
    with Node(NodeSpec(unique_name(), pods=0)) as node, NetlinkSocket(node.netns(NODE)) as netlink:
        ifindex = node.facts.uplink.ifindex
        with program(XDP_PASS, ProgType.XDP, "former") as old:
            xdp.attach(netlink, ifindex, xdp.Mode.GENERIC, old)
        (former,) = xdp.attached(netlink, ifindex)

        def late(program_id: int) -> str:
            if former in xdp.attached(netlink, ifindex):
                with program_by_id(former.program_id) as old, program(XDP_PASS, ProgType.XDP, "later") as new:
                    xdp.replace(netlink, ifindex, xdp.Mode.GENERIC, new, expected_fd=old)
                until(lambda: bpf.prog_next_id(former.program_id - 1) != former.program_id, "the program freed")
            return program_name(program_id)

        monkeypatch.setattr("lab.node.view.program_name", late)
        (link,) = (each for each in look(node).links if each.ifindex == ifindex)
    assert link.xdp == ("later (generic)",)


def test_programs_at_the_hooks_are_shown() -> None:
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        pod = node.pods[0]
        tc = nsenter(node.netns("node"), "tc")
        run([*tc, "qdisc", "add", "dev", pod.ifname, "clsact"])
        run([*tc, "filter", "add", "dev", pod.ifname, "ingress", "u32", "match", "u32", "0", "0"])
        view = look(node)
    (link,) = [link for link in view.links if link.name == pod.ifname]
    assert set(link.ingress) == {"u32"}
    assert link.egress == ()
    lines = draw(view).splitlines()
    (line,) = [number for number, line in enumerate(lines) if pod.ifname in line]
    assert lines[line + 1].strip() == f"ingress {' '.join(link.ingress)}  egress -  identity {pod.identity}"


def test_filters_of_other_chains_and_shared_blocks_are_shown() -> None:
    u32 = ["protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0"]
    with Node(NodeSpec(unique_name(), pods=2)) as node:
        one, two = node.pods
        tc = nsenter(node.netns("node"), "tc")
        run([*tc, "qdisc", "add", "dev", one.ifname, "clsact"])
        run([*tc, "filter", "add", "dev", one.ifname, "ingress", "chain", "5", *u32])
        run([*tc, "qdisc", "add", "dev", two.ifname, "ingress_block", "1", "clsact"])
        run([*tc, "filter", "add", "block", "1", *u32])
        links = {link.name: link for link in look(node).links}
    assert (set(links[one.ifname].ingress), links[one.ifname].egress) == ({"u32 (chain 5)"}, ())
    assert (set(links[two.ifname].ingress), links[two.ifname].egress) == ({"u32 (block 1)"}, ())


def test_interface_that_went_away_is_not_drawn() -> None:
    with Node(NodeSpec(unique_name(), pods=2)) as node:
        gone, stays = node.pods
        with NetlinkSocket(node.netns("node")) as socket:
            socket.request("remove", delete_link(gone.ifindex))
        drawing = draw(look(node))
        assert gone.ifname not in drawing
        assert f"└─{stays.ifindex:>4} {stays.ifname}" in drawing

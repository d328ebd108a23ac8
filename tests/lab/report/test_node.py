"""node.py: a node is drawn as its last reloads left it."""

from __future__ import annotations

from lab.report.node import Drawing, drawings
from lab.report.scenarios import scenarios_of
from lab.scenario.details import failed_reload, succeeded_reload
from lab.scenario.records import Record
from tests.lab.report.samples import MS, START, failed, outcome, record, run
from tests.lab.report.shapes import end, hooked, node_shape, route, seen


def drawn(found: Record) -> list[Drawing]:
    """Return the nodes of a scenario as they are drawn, by way of the file."""
    (scenario,) = scenarios_of(run(found))
    return drawings(scenario.reloads, scenario.nodes)


def test_hooks_have_the_last_program_and_the_generations_before() -> None:
    reloads = tuple({"node": 1, **outcome(generation=at, start=START + at * 9 * MS).to_json()} for at in (4, 2, 3))
    later = failed_reload(1, failed(9, start=START + 90 * MS))
    (scenario,) = scenarios_of(run(record(reloads=reloads, failed_reloads=(later,))))
    (node,) = drawings(scenario.reloads)
    (interface,) = node.interfaces
    assert (node.name, interface.name, interface.subject) == ("", "lxc1", "pod-1")
    hook = interface.hooks[0]
    assert (hook.direction, hook.program, hook.generation, hook.loads) == (
        "ingress",
        "cil_from_container",
        4,
        (2, 3, 4),
    )
    assert hook.words == (
        "lxc1 ingress: cil_from_container by tc, generation 4 of pod-1, program id 44; attached by 3 reloads"
    )
    assert node.table.rows[0] == ("lxc1", "pod-1", "ingress", "cil_from_container", "44", "tc", "4", "-", "2, 3")


def test_a_hook_tells_the_packets_that_entered_its_program() -> None:
    reloads = (succeeded_reload(1, outcome(), {"cil_from_container": 1200}),)
    (node,) = drawings(scenarios_of(run(record(reloads=reloads)))[0].reloads)
    ingress, egress = node.interfaces[0].hooks
    assert ingress.words.endswith("program id 42, 1,200 packets; attached by 1 reload")
    assert egress.packets == 0
    assert [row[7] for row in node.table.rows] == ["1,200", "0"]


def test_without_any_count_no_hook_has_zero_packets() -> None:
    reloads = (succeeded_reload(1, outcome(), {}),)
    (node,) = drawings(scenarios_of(run(record(reloads=reloads)))[0].reloads)
    assert [hook.packets for hook in node.interfaces[0].hooks] == [None, None]
    assert [row[7] for row in node.table.rows] == ["-", "-"]


def test_each_node_of_a_cluster_is_drawn() -> None:
    reloads = tuple({"node": node, **outcome(ifname=f"lxc{node}").to_json()} for node in (1, 2))
    (scenario,) = scenarios_of(run(record(reloads=reloads)))
    assert [(node.name, node.interfaces[0].name) for node in drawings(scenario.reloads)] == [
        ("1", "lxc1"),
        ("2", "lxc2"),
    ]


def test_pods_come_before_what_belongs_to_the_host() -> None:
    reloads = tuple(
        {"node": 1, **outcome(subject, ifname=f"if-{subject}").to_json()} for subject in ("overlay", "host", "pod-2")
    )
    (node,) = drawn(record(reloads=reloads))
    assert [interface.subject for interface in node.interfaces] == ["pod-2", "host", "overlay"]
    assert [each.subject for each in node.endpoints] == ["pod-2"]


def test_a_run_of_an_earlier_version_has_the_interfaces_that_reloads_concerned() -> None:
    (node,) = drawn(record())
    assert (node.facts, node.routes, node.others, node.outside) == ([], [], [], [])
    assert [words for words, _ in node.tables] == ["2 hooks as a table"]
    (interface,) = node.interfaces
    assert interface.words == "lxc1, of pod-1"


def test_a_node_has_all_of_its_interfaces_in_their_order() -> None:
    (node,) = drawn(record(nodes=(seen(node_shape(2)),)))
    assert [each.name for each in node.endpoints] == ["lxc1", "lxc2", "lxc_health"]
    assert [each.name for each in node.devices] == ["cilium_host", "cilium_net", "cilium_vxlan", "eth0"]
    by_name = {each.name: each for each in node.interfaces}
    assert by_name["lxc1"].words == ("lxc1: veth, index 48, MTU 1500, pair with eth0 of pod-1. No route leads here.")
    assert by_name["cilium_vxlan"].tied == "UDP port 8472"
    assert by_name["eth0"].words == (
        "eth0: veth, index 32, MTU 1500, 172.20.0.1/24, fd00:172:20::1/64, pair with eth0 of outside. 4 routes here: "
        "default via 172.20.0.254 dev eth0; 172.20.0.0/24 dev eth0 src 172.20.0.1 proto kernel scope link; "
        "default via fd00:172:20::fe dev eth0; fd00:172:20::/64 dev eth0 proto kernel."
    )
    assert node.alt.startswith("The node: 3 endpoints in namespaces of their own, and the devices cilium_host, ")
    interfaces = dict(node.tables)["Interfaces as a table"]
    assert ("eth0", "pod-1", "veth", "31", "1500", "10.244.0.3/32, fd00:10:244::3/128", "pair with lxc1 of node") in [
        *interfaces.rows
    ]
    assert interfaces.rows[-1][:3] == ("eth0", "outside", "veth")
    assert interfaces.rows[-1][-1] == "pair with eth0 of node"
    assert ("to other nodes", "VXLAN, UDP port 8472") in node.facts
    assert ("MTU", "1500, pods' default route 1450") in node.facts


def test_the_routes_of_an_endpoint_lead_out_of_its_own_interface() -> None:
    shape = node_shape(1)
    shape["routes"].append(route("10.244.0.3", "{pod-1}", " scope link"))
    (node,) = drawn(record(nodes=(seen(shape),)))
    assert node.endpoints[0].routes == ("10.244.0.3 dev lxc1 scope link",)
    assert node.endpoints[0].words.endswith("1 route here: 10.244.0.3 dev lxc1 scope link.")
    assert node.routes[-1]["dev"] == "lxc1"


def test_of_many_routes_a_few_are_told() -> None:
    shape = node_shape(0)
    shape["routes"] = [route(f"192.0.2.{number}", "eth0") for number in range(9)]
    (node,) = drawn(record(reloads=(), nodes=(seen(shape),)))
    assert node.devices[-1].words.endswith("; 192.0.2.5 dev eth0; and 3 more in the table.")


def test_a_tunnel_device_that_no_packet_takes_is_in_the_table_alone() -> None:
    (node,) = drawn(record(nodes=(seen(node_shape(1, tunnel=False)),)))
    assert "cilium_vxlan" not in [each.name for each in node.devices]
    assert "cilium_vxlan" in [row[0] for row in dict(node.tables)["Interfaces as a table"].rows]
    shape = node_shape(1, tunnel=False)
    shape["interfaces"].append(hooked("sit0", 2, kind="sit", up=False))
    (node,) = drawn(record(nodes=(seen(shape),)))
    assert "sit0" not in [each.name for each in node.devices]


def test_hooks_that_no_reload_concerned_have_what_the_kernel_told() -> None:
    shape = node_shape(2)
    *_, first, second = shape["interfaces"]
    first["ingress"] = ["cil_from_container-{pod-1}"]
    second["ingress"] = ["cil_from_container-{pod-2} (tcx)", "u32 (chain 5)"]
    # Without a pin a link has the kernel's name of its program, which has 15 characters.
    first["egress"] = ["cil_to_containe (tcx)"]
    shape["interfaces"][0]["xdp"] = ["cil_xdp_entry (native)"]
    (node,) = drawn(record(nodes=(seen(shape),)))
    found = {
        each.name: [(hook.direction, hook.program, hook.generation) for hook in each.hooks] for each in node.interfaces
    }
    assert found["lxc1"] == [("ingress", "cil_from_container", 2), ("egress", "cil_to_container", 2)]
    assert found["lxc2"] == [("ingress", "cil_from_container", 0), ("ingress", "u32 (chain 5)", 0)]
    assert found["eth0"] == [("xdp", "cil_xdp_entry", 0)]
    words = "lxc2 ingress: cil_from_container, which no reload of this scenario attached"
    assert node.endpoints[1].hooks[0].words == words
    assert ("lxc2", "pod-2", "ingress", "cil_from_container", "-", "-", "-", "-", "-") in [*node.table.rows]


def test_a_device_has_the_hooks_of_the_host_and_of_xdp() -> None:
    host, xdp = (
        {"node": 1, **outcome(subject, n, ifname="eth0").to_json()} for n, subject in ((2, "host"), (3, "xdp"))
    )
    xdp["attached"] = [{**xdp["attached"][0], "direction": "xdp", "program": "cil_xdp_entry"}]
    shape = node_shape(0)
    shape["interfaces"][0]["xdp"] = ["cil_xdp_entry (native)"]
    for nodes in ((), (seen(shape),)):
        (node,) = drawn(record(reloads=(host, xdp), nodes=nodes))
        (eth0,) = (each for each in node.devices if each.name == "eth0")
        assert [(hook.direction, hook.generation) for hook in eth0.hooks] == [("ingress", 2), ("egress", 2), ("xdp", 3)]
        assert [row[1] for row in node.table.rows] == ["host", "host", "xdp"]
        assert not node.endpoints or nodes


def test_devices_are_in_the_order_of_their_indices() -> None:
    shape = node_shape(0)
    shape["interfaces"].append(hooked("aaa", 60, peer=end("node", "bbb")))
    (node,) = drawn(record(reloads=(), nodes=(seen(shape),)))
    assert [each.name for each in node.devices] == ["cilium_host", "cilium_net", "cilium_vxlan", "eth0", "aaa"]


def test_a_pod_that_was_removed_has_left_its_hooks_in_the_table() -> None:
    reloads = tuple({"node": 1, **outcome(f"pod-{n}", ifname=f"lxc{n}").to_json()} for n in (1, 9))
    (node,) = drawn(record(reloads=reloads, nodes=(seen(node_shape(1)),)))
    assert [each.subject for each in node.endpoints] == ["pod-1", "health"]
    assert "lxc9" in [row[0] for row in node.table.rows]
    assert "lxc9" not in [row[0] for row in dict(node.tables)["Interfaces as a table"].rows]


def test_nodes_of_a_cluster_have_their_numbers_though_one_alone_was_reloaded() -> None:
    others = [{"number": 2, "port": "node-1", "addresses": ["172.20.1.1"], "pods": ["10.244.16.0/20"]}]
    nodes = (seen(node_shape(1, others=others)), seen(node_shape(0), 2))
    first, second = drawn(record(nodes=nodes))
    assert (first.name, second.name) == ("1", "2")
    assert first.endpoints[0].hooks[0].subject == "1/pod-1"
    assert first.others[0].words == "node 2: 172.20.1.1; its pods have 10.244.16.0/20"
    assert dict(first.tables)["1 other node as a table"].rows == [("node 2", "172.20.1.1", "10.244.16.0/20", "node-1")]

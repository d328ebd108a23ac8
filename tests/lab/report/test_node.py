"""node.py: a node is drawn as its last reloads left it."""

from __future__ import annotations

from lab.report.node import MOST, drawings
from lab.report.scenarios import scenarios_of
from lab.scenario.details import failed_reload, succeeded_reload
from tests.lab.report.samples import MS, START, failed, outcome, record, run


def test_hooks_have_the_last_program_and_the_generations_before() -> None:
    reloads = tuple({"node": 1, **outcome(generation=at, start=START + at * 9 * MS).to_json()} for at in (4, 2, 3))
    later = failed_reload(1, failed(9, start=START + 90 * MS))
    (scenario,) = scenarios_of(run(record(reloads=reloads, failed_reloads=(later,))))
    (node,) = drawings(scenario.reloads)
    (interface,) = node.interfaces
    assert (node.name, interface.name, interface.peer) == ("", "lxc1", "pod-1")
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
    (node,) = drawings(scenarios_of(run(record(reloads=reloads)))[0].reloads)
    assert [interface.peer for interface in node.interfaces] == ["pod-2", "host", "tunnel"]


def test_a_node_of_very_many_interfaces_is_a_table_alone() -> None:
    reloads = tuple({"node": 1, **outcome(f"pod-{n}", ifname=f"lxc{n}").to_json()} for n in range(MOST + 1))
    (node,) = drawings(scenarios_of(run(record(reloads=reloads)))[0].reloads)
    assert not node.drawn
    assert len(node.table.rows) == 2 * (MOST + 1)

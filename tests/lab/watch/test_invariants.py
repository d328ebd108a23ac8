"""Each invariant by itself: one fault on a node that is otherwise sound, and the violation that names it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import CT_MAPS, EGRESS_POLICY_CALLS, POLICY_CALLS, calls_map
from datapath.kernel import bpf, progarray
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_by_id
from datapath.kernel.map import open_pin
from datapath.reload.switchover import Attach
from lab.abi.conntrack import CtEntry, CtTuple
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.invariants import Expected, baseline, check, check_unchanged
from lab.watch.snapshot import PinnedMap, Snapshot
from lab.watch.violation import Violation
from tests.lab.labs import unique_name
from tests.lab.watch.faults import program_at, put_at, replace_pin, violations

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize(
    ("subject", "ifname", "direction"),
    [
        ("host", "cilium_net", "ingress"),
        ("host", "cilium_host", "ingress"),
        ("overlay", "cilium_vxlan", "egress"),
    ],
)
def test_a_hook_that_a_reload_left_out_is_found(agent: Agent, subject: str, ifname: str, direction: str) -> None:
    """These programs use no calls map: nothing in the kernel says of which load they are, only the reload does."""
    before = baseline(agent)
    agent.change = lambda plan: plan.change(
        lambda step: None if step.key == (f"attach {direction}", ifname) and isinstance(step, Attach) else step
    )
    outcome = agent.reload(subject)
    program = program_at(agent, ifname, Direction[direction.upper()]).program_id
    published, attached = violations(agent, before, outcome)
    assert published.startswith(f"invariant 4: {ifname} {direction}: program {program} is not ")
    assert attached == (
        f"invariant 1: {ifname} {direction}: program {program} although the last reload of {subject} attached none"
    )


def test_a_load_that_no_reload_names_is_found(agent: Agent) -> None:
    """Newer is not enough: the programs are those of the last reload, or something loads beside the agent."""
    before = baseline(agent)
    outcomes = [agent.reload("host"), agent.reload("pod-1"), agent.reload("pod-1")]
    assert violations(agent, before, *outcomes) == []
    agent.reload("pod-1")
    found = violations(agent, before, *outcomes)
    assert {line.partition(":")[0] for line in found} == {"invariant 1", "invariant 4"}
    assert all("the last reload of pod-1" in line for line in found)


def test_another_program_under_the_right_filter_name_is_found(agent: Agent) -> None:
    before, ifname = baseline(agent), agent.node.pod("pod-1").ifname
    ingress, egress = (program_at(agent, ifname, direction) for direction in Direction)
    put_at(agent, ingress, egress.program_id)
    assert f"invariant 1: {ifname} ingress: program cil_to_containe instead of cil_from_container" in violations(
        agent, before
    )


def test_the_program_of_another_endpoint_is_found(agent: Agent) -> None:
    before, pods = baseline(agent), agent.node.pods
    mine, other = (program_at(agent, pod.ifname, Direction.INGRESS) for pod in pods)
    put_at(agent, mine, other.program_id)
    calls = [calls_map(pod.endpoint_id) for pod in pods]
    assert f"invariant 2: {pods[0].ifname} ingress: {mine.name} uses {calls[1]} instead of {calls[0]}" in violations(
        agent, before
    )


@pytest.mark.parametrize("suffix", [":pending", ":stale", ":new"])
def test_whatever_is_pinned_beside_a_map_is_left_over(agent: Agent, suffix: str) -> None:
    before = baseline(agent)
    path = agent.config.globals / f"cilium_lxc{suffix}"
    with open_pin(agent.config.globals / "cilium_lxc") as pinned:
        pinned.pin(path)
    try:
        assert violations(agent, before) == [f"invariant 2: pin cilium_lxc{suffix} is left over"]
    finally:
        path.unlink()


def test_a_migrated_map_keeps_its_content(agent: Agent) -> None:
    """A declared migration allows another map, not another content."""
    expected = Expected(migrated=frozenset({"cilium_ipcache"}))
    before, path = baseline(agent), agent.config.globals / "cilium_ipcache"
    with open_pin(path) as old:
        kept = sorted(old.items())
    with replace_pin(path) as new:
        lost = [found for found in violations(agent, before, expected=expected) if found.startswith("invariant 3")]
        assert len(lost) == 1
        assert lost[0].startswith("invariant 3: map cilium_ipcache: content differs")
        changed = Expected(migrated=expected.migrated, changed=expected.migrated)
        assert not any(found.startswith("invariant 3") for found in violations(agent, before, expected=changed))
        for key, value in kept:
            new.update(key, value)
        assert not any(found.startswith("invariant 3") for found in violations(agent, before, expected=expected))


def test_a_migrated_map_that_is_gone_is_found(agent: Agent) -> None:
    before, path = baseline(agent), agent.config.globals / "cilium_tunnel_map"
    with open_pin(path) as pinned:
        path.unlink()
        try:
            expected = Expected(migrated=frozenset({path.name}))
            assert "invariant 3: map cilium_tunnel_map is not pinned any more" in violations(
                agent, before, expected=expected
            )
        finally:
            pinned.pin(path)


def test_migrated_connections_are_counted_while_they_live(agent: Agent) -> None:
    """A connection whose lifetime is over may go; one that lives is lost."""
    name, pods = CT_MAPS[0], agent.node.pods
    over, alive = (CtTuple(pods[0].ipv4, pods[1].ipv4, port, 80, 6).pack() for port in (1, 2))
    path = agent.config.globals / name
    with open_pin(path) as pinned:
        pinned.update(over, CtEntry(lifetime=1).pack())
        pinned.update(alive, CtEntry(lifetime=0xFFFFFFFF).pack())
    before, expected = baseline(agent), Expected(migrated=frozenset({name}))
    replace_pin(path).close()
    found = [line for line in violations(agent, before, expected=expected) if line.startswith("invariant 3")]
    assert found == [f"invariant 3: map {name}: 1 of 1 connections are gone"]


def test_an_empty_policy_slot_is_found(agent: Agent) -> None:
    """Callers of the endpoint's policy drop its packets then."""
    before, ident = baseline(agent), agent.node.pod("pod-2").endpoint_id
    with open_pin(agent.config.globals / POLICY_CALLS) as array:
        assert progarray.clear(array.fd, ident)
    assert violations(agent, before) == [f"invariant 4: {POLICY_CALLS} slot {ident} is empty"]


def test_the_slots_of_both_policy_arrays_are_checked(agent: Agent) -> None:
    """The second exists with other C sources only: here it has a program of another endpoint, at its own size."""
    before, (mine, other) = baseline(agent), agent.node.pods
    program = program_at(agent, other.ifname, Direction.INGRESS).program_id
    path = agent.config.globals / EGRESS_POLICY_CALLS
    fd = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 256)
    try:
        bpf.obj_pin(fd, path)
        with program_by_id(program) as program_fd:
            progarray.put(fd, mine.endpoint_id, program_fd)
        text = f"{EGRESS_POLICY_CALLS} slot {mine.endpoint_id}: program {program} belongs to another load"
        undeclared = f"map {EGRESS_POLICY_CALLS} is pinned, and no object declares it"
        assert violations(agent, before) == [f"invariant 4: {text}", f"invariant 9: {undeclared}"]
    finally:
        os.close(fd)
        path.unlink()


def test_a_small_policy_array_is_no_calls_map() -> None:
    """Its name says what it is, not its size: -D POLICY_PROG_MAP_SIZE=256 makes it as small as a calls map."""
    small = [("POLICY_PROG_MAP_SIZE", "256")]
    with Node(NodeSpec(unique_name("small"), pods=2)) as node, Agent(node, defines=small) as agent:
        agent.start()
        before, ident = baseline(agent), node.pod("pod-2").endpoint_id
        assert check(agent, before) == []
        with open_pin(agent.config.globals / POLICY_CALLS) as array:
            assert array.info.max_entries == 256
            assert progarray.clear(array.fd, ident)
        assert violations(agent, before) == [f"invariant 4: {POLICY_CALLS} slot {ident} is empty"]


def test_attached_programs_without_an_object_file_are_found(agent: Agent) -> None:
    before, pod = baseline(agent), agent.node.pod("pod-1")
    (agent.config.state / str(pod.endpoint_id) / "bpf_lxc.o").unlink()
    assert violations(agent, before) == [
        f"invariant 4: {pod.ifname} has programs, but no object file {pod.endpoint_id}/bpf_lxc.o"
    ]


def test_the_pins_of_a_removed_endpoint_are_found(agent: Agent) -> None:
    before = baseline(agent)
    paths = [agent.config.globals / name for name in (calls_map(999), "cilium_policy_00999", calls_map(999, "netdev_"))]
    with open_pin(agent.config.globals / "cilium_lxc") as pinned:
        for path in paths:
            fd = bpf.map_create(pinned.info.type, 4, 4, 1)
            bpf.obj_pin(fd, path)
            os.close(fd)
    try:
        assert sorted(violations(agent, before)) == sorted(
            f"invariant 9: map {path.name} is pinned for an endpoint or device that is gone" for path in paths
        )
    finally:
        for path in paths:
            path.unlink()


def test_a_difference_names_the_entry_that_differs(agent: Agent) -> None:
    """Not the whole map: there may be thousands of entries."""
    now = baseline(agent).snapshot

    def snapshot(value: bytes) -> Snapshot:
        return replace(now, pins={"cilium_lxc": PinnedMap(7, 1, {b"key": value, b"other": b"same"})})

    (violation,) = check_unchanged(snapshot(b"old"), snapshot(b"new"))
    assert str(violation) == "invariant 8: contents differ: cilium_lxc: b'key': b'old' -> b'new'"


def test_a_new_pin_of_a_map_without_content_is_told_once(agent: Agent) -> None:
    now = baseline(agent).snapshot

    def snapshot(*names: str) -> Snapshot:
        return replace(now, pins={name: PinnedMap(7, 3, None) for name in names})

    (violation,) = check_unchanged(snapshot(), snapshot("cilium_calls_00101:pending"))
    assert str(violation) == "invariant 8: pins differ: cilium_calls_00101:pending: None -> 7"


def test_violations_say_where() -> None:
    assert str(Violation(4, "slot 3 is empty").on("node-2")) == "invariant 4: node-2: slot 3 is empty"

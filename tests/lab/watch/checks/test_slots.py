"""Slots of calls maps: each holds what the object declares for it, none more, and every jump has its target."""

from __future__ import annotations

import struct

import pytest

from datapath.base.mapnames import calls_map
from datapath.kernel import progarray
from datapath.kernel.inventory import program_by_id
from datapath.kernel.map import open_pin
from lab.agent.agent import Agent
from lab.watch.invariants import baseline
from tests.lab.watch.faults import violations

pytestmark = pytest.mark.privileged

ARP, IPV4 = 6, 7


@pytest.mark.parametrize(
    ("subject", "infix", "number", "slot"),
    [
        pytest.param("pod-2", "", 102, ARP, id="pod-ARP"),
        pytest.param("pod-2", "", 102, 4, id="pod-neighbour-solicitation"),
        pytest.param("health", "", 2, ARP, id="health-ARP"),
        pytest.param("host", "hostns_", 1, 22, id="host-from-host"),
    ],
)
def test_an_empty_slot_is_found_at_every_endpoint(
    agent: Agent, subject: str, infix: str, number: int, slot: int
) -> None:
    before, name = baseline(agent), calls_map(number, infix)
    assert agent.node.endpoint(subject).id == number
    with open_pin(agent.config.globals / name) as calls:
        assert calls.delete(struct.pack("=I", slot))
    assert violations(agent, before) == [f"invariant 4: {name} slot {slot} is empty"]


def test_a_program_in_the_slot_of_another_is_found(agent: Agent) -> None:
    """Of the same load: what the slots of two builds with other numbers look like (DROP_MISSED_TAIL_CALL stays 0)."""
    name = calls_map(agent.node.pod("pod-1").endpoint_id)
    before = baseline(agent)
    with (
        open_pin(agent.config.globals / name) as calls,
        program_by_id(before.snapshot.slots[name][IPV4]) as program,
    ):
        progarray.put(calls.fd, ARP, program)
    assert f"invariant 4: {name} slot {ARP} holds tail_handle_ipv instead of tail_handle_arp" in violations(
        agent, before
    )


def test_a_slot_that_the_object_does_not_declare_is_found(agent: Agent) -> None:
    name = calls_map(agent.node.pod("pod-1").endpoint_id)
    before = baseline(agent)
    with (
        open_pin(agent.config.globals / name) as calls,
        program_by_id(before.snapshot.slots[name][IPV4]) as program,
    ):
        slot = min(set(range(calls.info.max_entries)) - before.snapshot.slots[name].keys())
        progarray.put(calls.fd, slot, program)
    assert violations(agent, before) == [f"invariant 4: {name} slot {slot} holds tail_handle_ipv undeclared"]


def test_a_jump_to_a_slot_that_the_object_leaves_empty_is_found(agent: Agent) -> None:
    """No packet has to make it."""
    before, pod = baseline(agent), agent.node.pod("pod-1")
    path, name = agent.config.state / str(pod.endpoint_id) / "bpf_lxc.o", calls_map(pod.endpoint_id)
    code, section = path.read_bytes(), b"2/%d\0" % ARP
    assert section in code
    path.write_bytes(code.replace(section, b"2/5\0"))
    text = f"cil_from_container jumps to slot {ARP} of {name}, which {path} leaves empty"
    assert f"invariant 4: {text}" in violations(agent, before)

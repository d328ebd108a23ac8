"""The programs at XDP: ours in its mode and of its load, nothing besides, what others have stays; and a kernel without
links for it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from datapath.base.bpftypes import ProgType
from datapath.base.mapnames import calls_map
from datapath.kernel import bpf, links, xdp
from datapath.kernel.map import open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.xdp import Mode
from datapath.reload.plans import XDP_SUBJECT
from datapath.reload.xdp import CIL_XDP_ENTRY, AttachXdp, DetachXdp
from lab.agent.agent import Agent
from lab.agent.gated import under_gates
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Fail
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec
from lab.watch.checks.xdp import check_xdp
from lab.watch.invariants import baseline, check
from lab.watch.snapshot import take
from tests.datapath.support import XDP_PASS, program
from tests.lab.labs import unique_name
from tests.lab.watch.faults import leave_out, violations
from tests.lab.wires import ip

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def device() -> Iterator[Agent]:
    spec = NodeSpec(unique_name("rules"), pods=0, devices=("eth0",), xdp="native")
    with Node(spec) as node, Agent(node) as agent:
        agent.start()
        yield agent


@pytest.fixture
def agent(device: Agent) -> Iterator[Agent]:
    """A node without a fault, before and after the test."""
    assert check(device, baseline(device)) == []
    yield device
    device.change = None
    device.configure(xdp="native", devices=("eth0",))
    device.reload(XDP_SUBJECT)
    assert check(device, baseline(device)) == []


def detach(agent: Agent) -> None:
    with links.pinned(agent.config.device_links("eth0") / CIL_XDP_ENTRY) as fd:
        assert fd is not None
        links.detach(fd)


def attach(agent: Agent, name: str, mode: Mode) -> None:
    with program(XDP_PASS, ProgType.XDP, name) as fd, NetlinkSocket(agent.node.netns(NODE)) as netlink:
        xdp.attach(netlink, netlink.ifindex("eth0"), mode, fd)


def take_off(agent: Agent, mode: Mode) -> None:
    with NetlinkSocket(agent.node.netns(NODE)) as netlink:
        ifindex = netlink.ifindex("eth0")
        (found,) = xdp.attached(netlink, ifindex)
        fd = bpf.prog_fd_by_id(found.program_id)
        try:
            xdp.detach(netlink, ifindex, mode, expected_fd=fd)
        finally:
            os.close(fd)


def test_a_reload_is_none_of_these(agent: Agent) -> None:
    before = baseline(agent)
    assert violations(agent, before, agent.reload(XDP_SUBJECT)) == []


def test_a_device_without_a_program_is_found(agent: Agent) -> None:
    before = take(agent.node)
    detach(agent)
    # Alone: that of leaks would wait for the programs to go, which the link holds.
    found = [str(each) for each in check_xdp(agent, before, take(agent.node))]
    assert found == ["invariant 1: eth0 xdp: 0 programs instead of cil_xdp_entry"]


def test_an_empty_slot_is_found(agent: Agent) -> None:
    before = baseline(agent)
    with NetlinkSocket(agent.node.netns(NODE)) as netlink:
        name = calls_map(netlink.ifindex("eth0"), "xdp_")
    (slot, *_) = before.snapshot.slots[name]
    with open_pin(agent.config.globals / name) as calls:
        assert calls.delete(struct.pack("=I", slot))
    assert f"invariant 4: {name} slot {slot} is empty" in violations(agent, before)


def test_a_device_that_is_left_out_has_neither_calls_map_nor_object(agent: Agent) -> None:
    """Best effort is none for a bridge, which has the host's programs and is no finding."""
    node = str(agent.node.netns(NODE))
    ip(node, "link", "add", "br0", "type", "bridge")
    try:
        agent.configure(xdp="best-effort", devices=("eth0", "br0"))
        agent.reload("host")
        before = baseline(agent)
        assert [each for each in violations(agent, before, agent.reload(XDP_SUBJECT)) if "left out" not in each] == []
    finally:
        agent.configure(xdp="native", devices=("eth0",))
        ip(node, "link", "del", "br0")
        agent.reload("host")


def test_a_program_in_another_mode_is_found(agent: Agent) -> None:
    before = baseline(agent)
    agent.configure(xdp="generic")
    assert "invariant 1: eth0 xdp: cil_xdp_entry (native) instead of cil_xdp_entry (generic)" in violations(
        agent, before
    )


def test_the_program_of_another_load_is_found(agent: Agent) -> None:
    before = baseline(agent)
    leave_out(agent, AttachXdp)
    found = violations(agent, before, agent.reload(XDP_SUBJECT))
    assert any(line.startswith("invariant 1: eth0 xdp: program ") for line in found), found


def test_a_program_that_is_left_over_is_found(agent: Agent) -> None:
    before = baseline(agent)
    agent.configure(devices=())
    leave_out(agent, DetachXdp)
    outcomes = (agent.reload("host"), agent.reload(XDP_SUBJECT))
    assert "invariant 1: eth0 xdp: cil_xdp_entry is left over" in violations(agent, before, *outcomes)
    agent.change = None
    agent.configure(devices=("eth0",))
    agent.reload("host")


def test_a_link_without_its_pin_is_found(agent: Agent) -> None:
    before = baseline(agent)
    pin = agent.config.device_links("eth0") / CIL_XDP_ENTRY
    with links.pinned(pin) as fd:
        assert fd is not None
        pin.unlink()
        path = pin.relative_to(agent.config.bpffs)
        assert f"invariant 1: eth0 xdp: pin {path} is missing" in violations(agent, before)
        bpf.obj_pin(fd, pin)


def test_a_program_of_others_is_left_alone_and_missed(agent: Agent) -> None:
    agent.configure(devices=())
    outcomes = [agent.reload("host"), agent.reload(XDP_SUBJECT)]
    attach(agent, "acme_xdp", Mode.GENERIC)
    before = baseline(agent)
    assert violations(agent, before) == []
    take_off(agent, Mode.GENERIC)
    found = violations(agent, before, *outcomes)
    assert any(line.startswith("invariant 10: eth0 xdp: program acme_xdp (") for line in found), found
    agent.configure(devices=("eth0",))
    agent.reload("host")


def test_a_kernel_without_links_for_xdp_attaches_by_netlink(agent: Agent) -> None:
    """Before Linux 5.9 BPF_LINK_CREATE is EINVAL for XDP: netlink then, for the first program and the next ones."""
    before = baseline(agent)
    outcome = agent.set_xdp(None)

    def refuse(call: Call) -> Answer:
        return Fail(errno.EINVAL) if call.name == "LINK_CREATE" else None

    def reload(_: object) -> None:
        for _ in range(2):
            agent.set_xdp("native")

    under_gates(agent, reload, refuse)
    agent.configure(xdp="native")
    (found,) = take(agent.node).xdp["eth0"]
    assert (found.mode, found.name, found.link_id) == (Mode.NATIVE, CIL_XDP_ENTRY, None)
    last = agent.reload(XDP_SUBJECT)
    assert violations(agent, before, outcome, last) == []
    agent.set_xdp(None)

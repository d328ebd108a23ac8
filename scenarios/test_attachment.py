"""Programs attached by tcx instead of tc: there and back, links without an interface or a pin, programs of others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from reloadlab import (
    Attachment,
    AttachType,
    Call,
    Direction,
    Gate,
    Program,
    ProgType,
    Scenario,
    create_link,
    enter_netns,
    pinned_link,
    prog_load,
    read_counters,
    run_tool,
    take_snapshot,
    tcx_is_supported,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and not tcx_is_supported(), reason="no tcx: Linux 6.6, CONFIG_NET_XGRESS"
)

TC, TCX = Attachment.TC, Attachment.TCX
DOTTED = "d0.100"
"""Named as a VLAN's device is; a BPF file system takes no dot in a name."""
TRIES = 5
"""Bursts of which one must have had the programs to itself: kernels send packets by themselves."""


def kinds(scenario: Scenario) -> set[str]:
    """Return how the programs of ours are attached: `tcx`, or `bpf` for filters."""
    return {f.kind for found in take_snapshot(scenario.node).filters.values() for f in found if f.is_ours}


@pytest.mark.parametrize(
    ("network", "first"),
    [
        pytest.param("node", TC, marks=pytest.mark.node(pods=2, devices=("eth0",))),
        pytest.param(
            *("endpoint-routes", TCX),
            marks=pytest.mark.node(pods=2, devices=("eth0",), endpoint_routes=True, agent={"attach": "tcx"}),
        ),
        pytest.param("tunnel", TC, marks=pytest.mark.node(pods=2, tunnel=True)),
    ],
)
@pytest.mark.node(rate=2000)
def test_all_of_a_node_there_and_back(scenario: Scenario, network: str, first: Attachment) -> None:
    """Every hook of the node, with packets under way all the time; each way is once the first."""
    other = TC if first is TCX else TCX
    for attach in (first, other, first):
        scenario.agent.configure(attach=attach)
        scenario.reload()
        assert kinds(scenario) == {"tcx" if attach is TCX else "bpf"}
    scenario.agent.configure(attach=other)
    scenario.reload_parallel(scenario.agent.subjects, workers=2)


@pytest.mark.own_sources("counts by programs: only our own C has counters for them (reloadlab_hits)")
@pytest.mark.node(pods=2, endpoint_routes=True, rate=0, agent={"attach": "tc"})
def test_one_program_meets_each_packet(scenario: Scenario) -> None:
    """At every system call of the way to tcx and back: a packet meets one program of ours, never none, never two."""
    ident = scenario.node.pod("pod-1").endpoint_id
    wrong: list[str] = []

    def hits() -> dict[int, int]:
        counted = read_counters(scenario.node).hits
        return {
            number: sum(
                packets for (_, source, program), packets in counted.items() if (source, program) == (ident, number)
            )
            for number in (Program.FROM_CONTAINER, Program.TO_CONTAINER)
        }

    def look(call: Call) -> None:
        met = {}
        for _ in range(TRIES):
            before = hits()
            scenario.traffic.burst("pod-1 -> pod-2 udp v4", 1)
            now = hits()
            met = {number: now[number] - before[number] for number in now}
            if set(met.values()) == {1}:
                return
        wrong.append(f"before {call.text}: {met}")

    # Both hooks have a link of their own.
    for attach, way in ((TCX, "LINK_CREATE"), (TC, "LINK_DETACH")):
        scenario.agent.configure(attach=attach)
        gate = Gate(look, call="*")
        scenario.reload("pod-1", gate=gate)
        assert sum(count for text, count in gate.calls.items() if text.startswith(f"{way} ")) == 2, gate.passed_calls
    assert not wrong, "\n".join(wrong)


@pytest.mark.node(pods=2, devices=("eth0",), agent={"attach": "tcx"})
def test_device_is_made_anew(scenario: Scenario) -> None:
    """The pinned links of one that is gone are made anew, and go when the device stays away."""
    scenario.agent.configure(devices=("eth0", DOTTED))
    pins = scenario.agent.config.device_links(DOTTED)
    with enter_netns(scenario.node.netns("node")):
        for _ in range(2):
            run_tool(["ip", "link", "add", DOTTED, "type", "veth", "peer", "name", "d0"])
            scenario.reload("host")
            assert sorted(path.name for path in pins.iterdir()) == ["cil_from_netdev", "cil_to_netdev"]
            run_tool(["ip", "link", "del", DOTTED])
    scenario.agent.configure(devices=("eth0",))
    scenario.reload("host")
    assert not pins.parent.exists()


@pytest.mark.node(pods=2, devices=("eth0",), agent={"attach": "tcx"})
def test_links_have_lost_their_pins(scenario: Scenario) -> None:
    """Others hold them: each hook keeps its one link, and has it pinned again (cilium issue 47847)."""
    directory = scenario.agent.config.links
    pins = list(directory.rglob("links/*"))
    assert {path.name for path in pins} > {"cil_from_container", "cil_from_netdev", "cil_to_netdev", "cil_to_host"}
    with ExitStack() as held:
        for path in pins:
            assert held.enter_context(pinned_link(path)) is not None
            path.unlink()
        scenario.reload()
    assert sorted(directory.rglob("links/*")) == sorted(pins)


@pytest.mark.parametrize("attach", [TC, TCX])
@pytest.mark.node(pods=2, devices=("eth0",), agent={"attach": "tc"})
def test_program_of_others_runs_before_ours(scenario: Scenario, attach: Attachment) -> None:
    """It is left alone, a reload of ours names it, and no packet is lost as long as it passes them on."""
    scenario.expect(warnings=frozenset({"tcx program acme (id "}))
    with foreign_program(scenario, "eth0"):
        scenario.agent.configure(attach=attach)
        (outcome,) = scenario.reload("host")
        if scenario.agent.external is None:
            (warning,) = outcome.warnings
            assert warning.startswith("eth0 ingress: tcx program acme (id ")
            assert warning.endswith(" runs before cil_from_netdev, which sees only what that passes on")
        first, *others = take_snapshot(scenario.node).filters["eth0", Direction.INGRESS]
        assert (first.name, [found.kind for found in others]) == ("acme", ["tcx" if attach is TCX else "bpf"])
    scenario.reload()


@contextmanager
def foreign_program(scenario: Scenario, ifname: str) -> Iterator[None]:
    """Attach a program that passes every packet on (TCX_NEXT) to an interface of the node, for the time of a block."""
    ifindex = take_snapshot(scenario.node).around.network.links[ifname].ifindex
    pass_on = b"\xb7\0\0\0\xff\xff\xff\xff\x95\0\0\0\0\0\0\0"
    program = prog_load(ProgType.SCHED_CLS, pass_on, "GPL", name="acme")
    try:
        with enter_netns(scenario.node.netns("node")):
            link = create_link(program, ifindex, AttachType.TCX_INGRESS)
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(program)

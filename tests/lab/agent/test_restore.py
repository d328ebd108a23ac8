"""A node is taken over by an agent that knows what is on its disk, whatever happened while no agent ran."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from datapath.base.mapnames import CT_ANY4, POLICY_CALLS
from datapath.build.epheader import HEADER_FILE, header_text
from datapath.errors import CompileError
from datapath.kernel import progarray
from datapath.kernel.map import open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import map_id
from lab.abi import layouts
from lab.abi.conntrack import CtEntry
from lab.agent.agent import Agent
from lab.cli.main import main
from lab.cli.proofs import spread
from lab.node import links
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec, PodFacts
from lab.proof.actions import restores
from lab.proof.cases import Faults
from lab.proof.errnos import first_errno_of
from lab.proof.sweep import sweep
from lab.watch.invariants import baseline
from lab.watch.snapshot import take
from tests.lab.labs import loaded_node
from tests.lab.proof.test_sweep import survived

pytestmark = [pytest.mark.privileged]

SAMPLE = 10
FOREVER = 0xFFFFFFFF
"""Lifetime of a connection: collecting what is over does not take it."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Path]]:
    templates = tmp_path_factory.mktemp("templates")
    with loaded_node("restore", templates, pods=2) as node:
        yield node, templates


@pytest.fixture
def agent(lab: tuple[Node, Path]) -> Iterator[Agent]:
    node, templates = lab
    with Agent(node, templates=templates) as made:
        yield made


def lose(agent: Agent) -> PodFacts:
    """Make a pod, and let it go as a container runtime does: nobody tells the agent."""
    agent.add_pod("gone")
    pod = agent.node.pod("gone")
    agent.node.remove_pod("gone")
    return pod


def left_of(agent: Agent, pod: PodFacts) -> list[str]:
    """Return what the node has of an endpoint that is gone."""
    config, number = agent.config, f"{pod.endpoint_id:05d}"
    found = [name for name in os.listdir(config.globals) if number in name]
    found += [f"directory {name}" for name in os.listdir(config.state) if name.startswith(f"{pod.endpoint_id}")]
    with open_pin(config.globals / POLICY_CALLS) as array:
        found += ["policy slot"] if progarray.program_at(array.fd, pod.endpoint_id) is not None else []
    for name, key in (
        ("cilium_lxc", layouts.endpoint_key(pod.ipv4)),
        ("cilium_ipcache", layouts.ipcache_key(pod.ipv6, 128)),
    ):
        with open_pin(config.globals / name) as pinned:
            # A trie would find the entry of a network.
            found += [name] if key in pinned.keys() else []  # noqa: SIM118 - a map of the kernel
    return sorted(found)


WHOLE = ["cilium_ipcache", "cilium_lxc", "directory 103", "policy slot"]
PINS = ["cilium_calls_00103", "cilium_policy_00103"]


def test_what_is_gone_is_removed_after_the_reloads(agent: Agent) -> None:
    """Everything of it is there until the last endpoint is reloaded."""
    pod = lose(agent)
    seen: list[list[str]] = []
    agent.on_outcome = lambda _: seen.append(left_of(agent, pod))
    restored = agent.restore()
    assert seen == [sorted((*PINS, *WHOLE))] * 4
    assert [outcome.subject for outcome in restored.outcomes] == list(agent.subjects)
    assert (restored.anew, restored.lost, list(restored.removed)) == ({}, {}, ["endpoint 103"])
    assert left_of(agent, pod) == []


def test_nothing_is_removed_if_a_reload_fails(agent: Agent) -> None:
    pod = lose(agent)
    agent.configure(defines=(("IPCACHE_MAP_SIZE", "nonsense"),))
    with pytest.raises(CompileError):
        agent.restore()
    assert left_of(agent, pod) == sorted((*PINS, *WHOLE))
    agent.configure(defines=())
    assert list(agent.restore().removed) == ["endpoint 103"]


def test_connections_of_what_is_gone_are_forgotten(agent: Agent) -> None:
    pod = lose(agent)
    key = pod.ipv4.packed + agent.node.pod("pod-1").ipv4.packed + bytes(6)
    with open_pin(agent.config.globals / CT_ANY4) as table:
        table.update(key, CtEntry(lifetime=FOREVER).pack())
        agent.restore()
        assert table.lookup(key) is None


def test_pins_and_slots_without_a_directory_are_removed(agent: Agent) -> None:
    """Somebody has cleaned up on the disk; of a map that was moved aside too."""
    pod = lose(agent)
    shutil.rmtree(agent.config.state / f"{pod.endpoint_id}")
    pins = agent.config.globals
    os.rename(pins / PINS[1], pins / f"{PINS[1]}:pending")
    removed = agent.restore().removed
    assert list(removed) == ["pin cilium_calls_00103", "pin cilium_policy_00103:pending"]
    assert left_of(agent, pod) == []


def test_a_map_that_programs_use_is_not_removed(agent: Agent) -> None:
    """The pin has the number of nobody, but the kernel would empty the array under an attached program."""
    pins = agent.config.globals
    os.rename(pins / "cilium_calls_00101", pins / "cilium_calls_00999")
    assert agent.loader.sweep({1, 2, 101, 102}) == []
    os.rename(pins / "cilium_calls_00999", pins / "cilium_calls_00101")


def test_an_endpoint_without_a_directory_is_loaded_anew(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs on until then, and is not swept; what another number's directory tells is not believed."""
    state = agent.config.state
    shutil.rmtree(state / "101")
    (state / "102" / HEADER_FILE).write_text("nothing")
    (state / "102" / f".{HEADER_FILE}.x").touch()
    before = baseline(agent)
    assert main(["restore", agent.node.name]) == 0
    told = capsys.readouterr()
    assert told.out == f"{agent.node.name}: 4 of 4 restored\n"
    assert f"warning: {agent.node.name}/pod-1: there is no directory 101: loaded like a new one\n" in told.err
    assert "/pod-2: 102/ep_config.h: it has no line CILIUM_BASE64_: loaded like a new one\n" in told.err
    assert take(agent.node).pins.keys() == before.snapshot.pins.keys()
    assert agent.restore().anew == {}


def test_directories_of_killed_builds_are_put_back_or_removed(agent: Agent) -> None:
    """One took the place of none, the other is superfluous."""
    state = agent.config.state
    (state / "101").rename(state / "101_stale")
    (state / "102_next").mkdir()
    restored = agent.restore()
    assert (restored.anew, list(restored.removed)) == ({}, ["directory 102_next"])
    assert sorted(name for name in os.listdir(state) if name.startswith("10")) == ["101", "102"]


def test_a_pod_inherits_nothing_from_one_whose_number_it_has(agent: Agent) -> None:
    """It was made while no agent ran, and inherits nothing: no connection, no rule, no program."""
    pod = lose(agent)
    pins, key = agent.config.globals, pod.ipv4.packed + agent.node.pod("pod-1").ipv4.packed + bytes(6)
    before = {name: map_id(pins / name) for name in PINS}
    made = agent.node.add_pod("next")
    assert (made.endpoint_id, made.ipv4) == (pod.endpoint_id, pod.ipv4)
    with open_pin(pins / CT_ANY4) as table:
        table.update(key, CtEntry(lifetime=FOREVER).pack())
        restored = agent.restore()
        assert table.lookup(key) is None
    assert restored.anew == {"next": "directory 103 is that of a former endpoint 103"}
    assert {name for name in PINS if map_id(pins / name) == before[name]} == set()
    agent.remove_pod("next")


def test_a_directory_of_another_interface_is_not_believed(agent: Agent) -> None:
    """The pod is loaded anew, in place: what runs at its interface is its own."""
    endpoint = agent.endpoint("pod-1")
    header = agent.config.state / "101" / HEADER_FILE
    header.write_bytes(header_text(replace(endpoint, mac="02:00:00:00:00:09")))
    with open_pin(agent.config.globals / "cilium_policy_00101") as policy:
        assert agent.restore().anew == {"pod-1": "directory 101 is that of a former endpoint 101"}
        assert map_id(agent.config.globals / "cilium_policy_00101") == policy.info.id


def test_a_pod_without_its_interface_is_told_and_kept(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """The node still has the pod: it is told, the others are restored, and nothing of it is swept."""
    agent.add_pod("broken")
    pod = agent.node.pod("broken")
    with NetlinkSocket(agent.node.netns(NODE)) as netlink:
        netlink.request("remove", links.delete_link(pod.ifindex))
    assert main(["restore", agent.node.name]) == 1
    told = capsys.readouterr()
    assert told.out == f"{agent.node.name}: 4 of 5 restored\n"
    assert told.err == (
        f"reloadlab: {agent.node.name}/broken: not restored: its interface {pod.ifname} does not exist\n"
    )
    assert len(left_of(agent, pod)) == len((*PINS, *WHOLE))
    agent.remove_pod("broken")
    assert left_of(agent, pod) == []


def test_a_restore_that_fails_or_is_killed_is_followed_by_another() -> None:
    """Under traffic, at a sample of its calls; `reloadlab faults --restore` takes all of them."""
    spec = NodeSpec("restore-killed", pods=1)
    result = sweep(spec, restores(spec), faults=Faults(first_errno_of), choose=partial(spread, number=SAMPLE))
    survived(result, SAMPLE, {"failed", "killed"})

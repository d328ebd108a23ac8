"""Faults that tests of the checks make on a node."""

from __future__ import annotations

from pathlib import Path

from datapath.kernel import bpf, hooks
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_by_id
from datapath.kernel.map import Map, open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.reload.outcome import Outcome
from datapath.reload.step import Step
from lab.agent.agent import Agent
from lab.node.topology import NODE
from lab.watch.invariants import Baseline, Expected, check


def violations(agent: Agent, before: Baseline, *outcomes: Outcome, expected: Expected | None = None) -> list[str]:
    return [str(found) for found in check(agent, before, expected=expected, outcomes=outcomes)]


def leave_out(agent: Agent, *kinds: type[Step], target: str | None = None) -> None:
    """Have the next reloads leave out steps."""
    agent.change = lambda plan: plan.change(
        lambda step: None if isinstance(step, kinds) and target in (None, step.target) else step
    )


def program_at(agent: Agent, ifname: str, direction: Direction) -> hooks.Filter:
    with NetlinkSocket(agent.node.netns(NODE)) as netlink:
        (found,) = hooks.filters(netlink, netlink.ifindex(ifname), direction)
    return found


def put_at(agent: Agent, place: hooks.Filter, program_id: int) -> None:
    """Attach another program under the name of the one that is there."""
    with NetlinkSocket(agent.node.netns(NODE)) as netlink, program_by_id(program_id) as fd:
        priority = place.priority
        hooks.attach(netlink, place.ifindex, place.direction, program_fd=fd, name=place.name, priority=priority)


def replace_pin(path: Path) -> Map:
    """Pin an empty map of the same kind in the place of another."""
    with open_pin(path) as old:
        info = old.info
    fd = bpf.map_create(info.type, info.key_size, info.value_size, info.max_entries, flags=info.flags, name=info.name)
    path.unlink()
    bpf.obj_pin(fd, path)
    return Map(fd, path.name, bpf.map_info(fd))

"""Invariants 1 and 10: the programs at the hooks, ours and those of others."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from datapath.endpoint import Attachment
from datapath.kernel.hooks import HANDLE, LINKED, NETKIT, TCX, Direction, filter_name
from datapath.kernel.links import Entry
from datapath.kernel.tcx import TcxProgram, runs_before
from datapath.reload.plans import CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN
from lab.agent.agent import Agent
from lab.node.topology import HEALTH
from lab.watch.snapshot import KERNEL_NAME, Snapshot
from lab.watch.violation import Violation

_BY = {"bpf": "tc", TCX: "tcx", NETKIT: "netkit"}
"""How a program is attached, by the kind of what is listed at its hook."""


def check_hooks(agent: Agent, now: Snapshot, expected: Collection[str] = ()) -> Iterator[Violation]:
    """Yield the hooks without exactly one program of ours, or with one that does not belong there (invariant 1).

    Yields as well what runs before ours; not if that contains one of the texts in `expected`, which are of warnings.
    """
    yield from (Violation(1, what) for what in _hooks(agent, now))
    found = (what for what in _before_ours(agent, now) if not any(text in what for text in expected))
    yield from (Violation(1, what) for what in found)


def check_foreign(before: Snapshot, now: Snapshot) -> Iterator[Violation]:
    """Yield the foreign filters that are gone (invariant 10)."""
    yield from (Violation(10, what) for what in _foreign(before, now))


def wanted_programs(agent: Agent) -> dict[tuple[str, Direction], str]:
    """Return the program that belongs at each hook in the node's present mode."""
    node, config = agent.node, agent.config
    wanted = {
        (CILIUM_HOST, Direction.INGRESS): "cil_to_host",
        (CILIUM_HOST, Direction.EGRESS): "cil_from_host",
        (CILIUM_NET, Direction.INGRESS): "cil_to_host",
    }
    if node.spec.tunnel:
        wanted[CILIUM_VXLAN, Direction.INGRESS] = "cil_from_overlay"
        wanted[CILIUM_VXLAN, Direction.EGRESS] = "cil_to_overlay"
    for device in config.devices:
        wanted[device, Direction.INGRESS] = "cil_from_netdev"
        if config.egress_devices:
            wanted[device, Direction.EGRESS] = "cil_to_netdev"
    for name in (HEALTH, *(pod.name for pod in node.pods)):
        wanted[node.pod(name).ifname, Direction.INGRESS] = "cil_from_container"
        if agent.endpoint_routes:
            wanted[node.pod(name).ifname, Direction.EGRESS] = "cil_to_container"
    return wanted


def wanted_pins(agent: Agent) -> set[str]:
    """Return where the links of programs are pinned, and the directories there, below the bpffs; none of filters."""
    node, config = agent.node, agent.config
    pods = {pod.ifname: pod.endpoint_id for pod in (node.facts.health, *node.pods)}
    netkit = _netkit_pods(agent)
    found: set[str] = set()
    for (ifname, _), program in wanted_programs(agent).items():
        if config.attach is not Attachment.TCX and ifname not in netkit:
            continue
        directory = config.endpoint_links(pods[ifname]) if ifname in pods else config.device_links(ifname)
        paths = (directory / program, directory, directory.parent)
        found |= {str(path.relative_to(config.bpffs)) for path in paths}
    return found


def _netkit_pods(agent: Agent) -> frozenset[str]:
    """Return the interfaces of the pods if those have netkit devices, whose programs are attached by links."""
    facts = agent.node.facts
    pods = () if agent.config.datapath_mode == "veth" else (facts.health, *facts.pods)
    return frozenset(pod.ifname for pod in pods)


def _before_ours(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield the programs of others at hooks of tcx and netkit that packets meet before ours."""
    for (ifname, direction), program in wanted_programs(agent).items():
        for found in now.filters.get((ifname, direction), ()):
            if found.is_ours or found.kind not in LINKED:
                break
            name = now.infos[found.program_id].name if found.program_id in now.infos else found.name
            foreign = TcxProgram(Entry(found.program_id, 0), name, found.kind)
            yield runs_before(ifname, direction, foreign, program)


def _hooks(agent: Agent, now: Snapshot) -> Iterator[str]:
    wanted = wanted_programs(agent)
    pods = _netkit_pods(agent)
    for place in sorted(wanted.keys() | now.filters.keys(), key=lambda p: (p[0], str(p[1]))):
        where = f"{place[0]} {place[1]}"
        ours = [f for f in now.filters.get(place, ()) if f.is_ours]
        program = wanted.get(place)
        kind = NETKIT if place[0] in pods else TCX if agent.config.attach is Attachment.TCX else "bpf"
        number = (0, 0) if kind in LINKED else (agent.config.filter_priority or 1, HANDLE)
        if program is None:
            yield from (f"{where}: {f.name} is left over" for f in ours)
        elif len(ours) != 1:
            yield f"{where}: {len(ours)} programs instead of {program}: {', '.join(map(str, ours)) or 'none'}"
        elif ours[0].kind != kind:
            yield f"{where}: {ours[0].name} is attached by {_BY[ours[0].kind]} instead of {_BY[kind]}"
        elif kind in LINKED and ours[0].name == program[:KERNEL_NAME]:
            yield f"{where}: the {kind} link of {program} is not pinned"
        elif not _is_named(ours[0].name, program, place[0], agent) or (ours[0].priority, ours[0].handle) != number:
            yield f"{where}: {ours[0].name} priority {ours[0].priority} handle {ours[0].handle:#x} instead of {program}"
        elif (name := now.infos[ours[0].program_id].name) != program[:KERNEL_NAME]:
            yield f"{where}: program {name} instead of {program}"


def _is_named(name: str, program: str, ifname: str, agent: Agent) -> bool:
    """Tell whether a filter has the name of its program; that of other loaders may go on.

    tc adds the section, `:[from-container]`: it may have loaded one that our own loader did not (`prove --beside tc`).
    """
    wanted = filter_name(program, ifname)
    return name == wanted or name.startswith(f"{wanted}:[") or (agent.external is not None and name.startswith(wanted))


def _foreign(before: Snapshot, now: Snapshot) -> Iterator[str]:
    for (ifname, direction), found in before.filters.items():
        for item in found:
            if not item.is_ours and item not in now.filters.get((ifname, direction), ()):
                yield f"{ifname} {direction}: foreign filter {item.name or item.kind} is gone"

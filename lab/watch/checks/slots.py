"""Invariant 4: the slots of calls maps and policy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datapath.base.mapnames import calls_map, is_calls_map
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec
from datapath.object.tailcalls import tail_calls
from datapath.reload.plans import CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN
from lab.agent.agent import Agent
from lab.node.topology import HEALTH, HOST_ENDPOINT
from lab.watch.snapshot import KERNEL_NAME, Snapshot, calls_maps
from lab.watch.violation import Violation


def check_slots(agent: Agent, now: Snapshot) -> Iterator[Violation]:
    """Yield the slots that differ from what the object files declare, or hold a program of another load (invariant 4).

    Yields as well what a program of an object file jumps to and the file does not declare.
    """
    yield from (Violation(4, what) for what in _generations(now))
    yield from (Violation(4, what) for what in _policy_slots(agent, now))
    yield from (Violation(4, what) for what in _declared_slots(agent, now))


def _generations(now: Snapshot) -> Iterator[str]:
    ids = calls_maps(now)
    for name, filled in now.slots.items():
        if not is_calls_map(name):
            continue
        for slot, program in filled.items():
            others = [m for m in now.maps_of(program) if m in now.calls and m != ids[name]]
            if others:
                yield f"{name} slot {slot}: program {program} belongs to another load"


def _policy_slots(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield the slots of policy arrays with a program of another load than the endpoint's."""
    ids = calls_maps(now)
    for endpoint in agent.node.endpoints():
        name = calls_map(endpoint.id, "hostns_" if endpoint.is_host else "")
        for array, filled in now.policies.items():
            program = filled.get(endpoint.id)
            if program is not None and any(m in now.calls and m != ids.get(name) for m in now.maps_of(program)):
                yield f"{array} slot {endpoint.id}: program {program} belongs to another load"


def _declared_slots(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield what is wrong with the slots of the calls maps and policy arrays of attached programs."""
    attached = {ifname for (ifname, _), found in now.filters.items() if any(item.is_ours for item in found)}
    for ifname, path in _object_files(agent):
        if path.exists():
            yield from _slots_of(read_object(path).spec, now)
        elif ifname in attached:
            yield f"{ifname} has programs, but no object file {path.relative_to(agent.config.state)}"


def _slots_of(spec: CollectionSpec, now: Snapshot) -> Iterator[str]:
    calls = {name: filled for name, filled in now.slots.items() if is_calls_map(name)}
    for name in spec.maps.keys() & (calls.keys() | now.policies.keys()):
        filled, wanted = {**calls, **now.policies}[name], spec.maps[name].contents
        for slot, program in sorted(wanted.items()):
            if program not in spec.programs:
                continue
            if slot not in filled:
                yield f"{name} slot {slot} is empty"
            elif (found := now.infos[filled[slot]].name) != program[:KERNEL_NAME]:
                yield f"{name} slot {slot} holds {found} instead of {program}"
        if name in calls:
            # A policy array has the slots of other objects as well.
            extra = sorted(filled.keys() - wanted.keys())
            yield from (f"{name} slot {slot} holds {now.infos[filled[slot]].name} undeclared" for slot in extra)
    yield from _undeclared_targets(spec)


def _undeclared_targets(spec: CollectionSpec) -> Iterator[str]:
    """Yield the slots that programs jump to and that the object puts nothing into."""
    for program in spec.programs.values():
        for call in tail_calls(program):
            target = spec.maps.get(call.map)
            if call.slot is not None and target is not None and call.slot not in target.contents:
                if not is_calls_map(call.map):
                    continue
                yield f"{program.name} jumps to slot {call.slot} of {call.map}, which {spec.path} leaves empty"


def _object_files(agent: Agent) -> Iterator[tuple[str, Path]]:
    """Yield the interfaces that have programs of ours, and the object file that each is loaded from."""
    node, state = agent.node, agent.config.state
    host = state / str(HOST_ENDPOINT)
    yield CILIUM_HOST, host / "bpf_host.o"
    yield CILIUM_NET, host / f"bpf_host_{CILIUM_NET}.o"
    yield from ((device, host / f"bpf_netdev_{device}.o") for device in agent.config.devices)
    if node.spec.tunnel:
        yield CILIUM_VXLAN, state / "bpf_overlay.o"
    for name in (HEALTH, *(pod.name for pod in node.pods)):
        pod = node.pod(name)
        yield pod.ifname, state / str(pod.endpoint_id) / "bpf_lxc.o"

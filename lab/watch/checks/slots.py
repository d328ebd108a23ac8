"""Invariant 4: the slots of calls maps and policy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from datapath.base.mapnames import calls_map, is_calls_map
from datapath.kernel.inventory import program_maps
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec
from datapath.reload.plans import CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN
from lab.agent.agent import Agent
from lab.node.topology import HEALTH, HOST_ENDPOINT
from lab.watch.snapshot import Snapshot, calls_maps
from lab.watch.violation import Violation


def check_slots(agent: Agent, now: Snapshot) -> Iterator[Violation]:
    """Yield the slots that are empty, or hold a program of another load than the entry program (invariant 4)."""
    yield from (Violation(4, what) for what in _generations(now))
    yield from (Violation(4, what) for what in _policy_slots(agent, now))
    yield from (Violation(4, what) for what in _empty_slots(agent, now))


def _generations(now: Snapshot) -> Iterator[str]:
    ids = calls_maps(now)
    for name, filled in now.slots.items():
        if not is_calls_map(name):
            continue
        for slot, program in filled.items():
            others = [m for m in program_maps(program) if m in now.calls and m != ids[name]]
            if others:
                yield f"{name} slot {slot}: program {program} belongs to another load"


def _policy_slots(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield the slots of policy arrays with a program of another load than the endpoint's."""
    ids = calls_maps(now)
    for endpoint in agent.node.endpoints():
        name = calls_map(endpoint.id, "hostns_" if endpoint.is_host else "")
        for array, filled in now.policies.items():
            program = filled.get(endpoint.id)
            if program is not None and any(m in now.calls and m != ids.get(name) for m in program_maps(program)):
                yield f"{array} slot {endpoint.id}: program {program} belongs to another load"


def _empty_slots(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield the empty slots of calls maps and policy arrays that the object files of attached programs fill."""
    arrays = {**now.policies, **{name: filled for name, filled in now.slots.items() if is_calls_map(name)}}
    attached = {ifname for (ifname, _), found in now.filters.items() if any(item.is_ours for item in found)}
    for ifname, path in _object_files(agent):
        if path.exists():
            yield from _empty_slots_of(read_object(path).spec, arrays)
        elif ifname in attached:
            yield f"{ifname} has programs, but no object file {path.relative_to(agent.config.state)}"


def _empty_slots_of(spec: CollectionSpec, arrays: Mapping[str, Mapping[int, int]]) -> Iterator[str]:
    for name in spec.maps.keys() & arrays.keys():
        for slot, program in sorted(spec.maps[name].contents.items()):
            if program in spec.programs and slot not in arrays[name]:
                yield f"{name} slot {slot} is empty"


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

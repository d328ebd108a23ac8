"""Invariant 4: the slots of calls maps and policy arrays.

A loader may leave out the programs that nothing reaches from those that are attached; what it loads is in its slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datapath.base.mapnames import calls_map, is_calls_map
from datapath.object.reachability import reached
from datapath.object.spec import CollectionSpec
from datapath.object.tailcalls import tail_calls
from lab.agent.agent import Agent
from lab.watch.checks.objects import InterfaceObject
from lab.watch.snapshot import KERNEL_NAME, Snapshot, calls_maps
from lab.watch.violation import Violation


def check_slots(agent: Agent, now: Snapshot, objects: Sequence[InterfaceObject]) -> Iterator[Violation]:
    """Yield the slots that differ from what the object files declare, or hold a program of another load (invariant 4).

    Yields as well what a program of an object file jumps to and the file does not declare.
    """
    yield from (Violation(4, what) for what in _generations(now))
    yield from (Violation(4, what) for what in _policy_slots(agent, now))
    yield from (Violation(4, what) for what in _declared_slots(agent, now, objects))


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


def _declared_slots(agent: Agent, now: Snapshot, objects: Sequence[InterfaceObject]) -> Iterator[str]:
    """Yield what is wrong with the slots of the calls maps and policy arrays of attached programs."""
    attached: dict[str, list[str]] = {}
    for (ifname, _), found in now.filters.items():
        attached.setdefault(ifname, []).extend(item.name for item in found if item.is_ours)
    at_xdp = {ifname: [each.name for each in found if each.is_ours] for ifname, found in now.xdp.items()}
    for each in objects:
        names = (at_xdp if each.is_xdp else attached).get(each.ifname, [])
        if each.spec is not None:
            yield from _slots_of(each.spec, names, now)
        elif names:
            yield f"{each.ifname} has programs, but no object file {each.path.relative_to(agent.config.state)}"


def _slots_of(spec: CollectionSpec, filters: Sequence[str], now: Snapshot) -> Iterator[str]:
    needed = reached(spec, [name for name in spec.programs if any(said.startswith(name) for said in filters)])
    calls = {name: filled for name, filled in now.slots.items() if is_calls_map(name)}
    for name in spec.maps.keys() & (calls.keys() | now.policies.keys()):
        filled, wanted = {**calls, **now.policies}[name], spec.maps[name].contents
        for slot, program in sorted(wanted.items()):
            if program not in spec.programs:
                continue
            if slot not in filled:
                if program in needed:
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
            target = spec.maps.get(call.map or "")
            if call.slot is not None and target is not None and call.slot not in target.contents:
                if not is_calls_map(target.name):
                    continue
                yield f"{program.name} jumps to slot {call.slot} of {target.name}, which {spec.path} leaves empty"

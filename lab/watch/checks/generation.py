"""Invariants 1 and 4: every program, at a hook or in a slot, is of the load that the last reload names.

The names and slots alone do not tell: two loads of the same object have the same. What tells is the kernel's ids, which
each reload reports (datapath.reload.outcome.Loaded). So this holds for every C source, ours or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from datapath.base.mapnames import OVERLAY_CALLS_MAP, POLICY_ARRAYS, calls_map, is_calls_map, xdp_of
from datapath.kernel.hooks import Direction
from datapath.reload.outcome import Loaded, Outcome
from datapath.reload.plans import CILIUM_VXLAN, OVERLAY_SUBJECT, XDP_SUBJECT
from lab.agent.agent import Agent
from lab.node.topology import HEALTH, HOST
from lab.watch.checks.hooks import wanted_programs
from lab.watch.snapshot import Snapshot, calls_maps
from lab.watch.violation import Violation

Place = tuple[str, Direction]


def check_generation(agent: Agent, before: Snapshot, now: Snapshot, outcomes: Sequence[Outcome]) -> Iterator[Violation]:
    """Yield what is not of the load that it should be of; `outcomes` are all reloads since `before`.

    What was reloaded has the programs of its last reload, all else those that it had before.
    """
    done = sorted(outcomes, key=lambda outcome: outcome.end_ns)
    last = {outcome.subject: outcome for outcome in done}
    yield from (Violation(1, what) for what in _hooks(agent, before, now, last))
    yield from (Violation(1, what) for what in _at_xdp(before, now, last.get(XDP_SUBJECT)))
    for subject in (each for each in last if each in agent.subjects):
        own = {endpoint for endpoint, name in _endpoints(agent).items() if name == subject}
        yield from (Violation(4, what) for what in _policy_slots(now, subject, own, last[subject].loaded))
        for loaded in last[subject].loaded:
            yield from (Violation(4, what) for what in _calls_slots(now, subject, loaded))
    yield from (Violation(4, what) for what in _kept_slots(agent, before, now, last))
    yield from (Violation(4, what) for what in _reused(before, done))


def _hooks(agent: Agent, before: Snapshot, now: Snapshot, last: Mapping[str, Outcome]) -> Iterator[str]:
    for (ifname, direction), subject in _subjects(agent).items():
        old = _programs(before, (ifname, direction))
        reload = last.get(subject)
        if reload is None:
            # No hook before: the interface was made, or the mode switched, without a reload.
            wanted = old
            whose = "the one before, without a reload"
        else:
            attached = (each for each in reload.attached if (each.ifname, each.direction) == (ifname, str(direction)))
            wanted = tuple(each.program_id for each in attached)
            whose = f"that of the last reload of {subject}"
        found = _programs(now, (ifname, direction))
        # One too many, or none at all, is what check_hooks tells.
        if len(found) == 1 and len(wanted) == 1 and found != wanted:
            yield f"{ifname} {direction}: program {found[0]} instead of {wanted[0]}, {whose}"
        elif len(found) == 1 and not wanted and reload is not None:
            yield f"{ifname} {direction}: program {found[0]} although the last reload of {subject} attached none"


def _at_xdp(before: Snapshot, now: Snapshot, reload: Outcome | None) -> Iterator[str]:
    wanted = {each.ifname: each.program_id for each in reload.attached} if reload is not None else {}
    for ifname, found in now.xdp.items():
        old = [each.program_id for each in before.xdp.get(ifname, ()) if each.is_ours]
        expected = [wanted[ifname]] if ifname in wanted else [] if reload is not None else old
        programs = [each.program_id for each in found if each.is_ours]
        if programs != expected and programs:
            whose = (
                "the one before, without a reload" if reload is None else f"that of the last reload of {XDP_SUBJECT}"
            )
            yield f"{ifname} xdp: program {programs[0]} instead of {expected[0] if expected else 'none'}, {whose}"


def _programs(snapshot: Snapshot, place: Place) -> tuple[int, ...]:
    return tuple(item.program_id for item in snapshot.filters.get(place, ()) if item.is_ours)


def _subjects(agent: Agent) -> dict[Place, str]:
    """Return what is reloaded to give a hook its program."""
    pods = {agent.node.pod(name).ifname: name for name in (HEALTH, *(pod.name for pod in agent.node.pods))}
    return {
        place: pods.get(place[0], OVERLAY_SUBJECT if place[0] == CILIUM_VXLAN else HOST)
        for place in wanted_programs(agent)
    }


def _calls_slots(now: Snapshot, subject: str, loaded: Loaded) -> Iterator[str]:
    """Yield the slots that differ from what the object declares, and a calls map that is not the load's."""
    pinned = calls_maps(now)
    for name, slots in loaded.slots.items():
        if is_calls_map(name):
            if pinned.get(name) != loaded.arrays[name]:
                yield f"{name} is map {pinned.get(name)} instead of {loaded.arrays[name]}, the last reload of {subject}"
            yield from _differing(name, slots, now.slots.get(name, {}), subject)


def _policy_slots(now: Snapshot, subject: str, own: Set[int], loaded: Sequence[Loaded]) -> Iterator[str]:
    """Yield the slots of policy arrays that differ from what the first object declares that declares them.

    The objects of the host's devices have a policy program of the host as well: that of the first counts. The subject's
    `own` slots are empty if none declares them: a host that has lost its firewall has no program there.
    """
    for name in POLICY_ARRAYS:
        wanted = {slot: program for each in reversed(loaded) for slot, program in each.slots.get(name, {}).items()}
        filled = now.policies.get(name, {})
        looked_at = filled.keys() & (wanted.keys() | own)
        yield from _differing(name, wanted, {slot: filled[slot] for slot in looked_at}, subject)


def _differing(name: str, wanted: Mapping[int, int], filled: Mapping[int, int], subject: str) -> Iterator[str]:
    for slot in sorted(wanted.keys() | filled.keys()):
        if slot in filled and wanted.get(slot) != filled[slot]:
            said = f"instead of {wanted[slot]}, " if slot in wanted else "which is none of "
            yield f"{name} slot {slot}: program {filled[slot]} {said}the last reload of {subject}"


def _kept_slots(agent: Agent, before: Snapshot, now: Snapshot, last: Mapping[str, Outcome]) -> Iterator[str]:
    """Yield the slots of what was not reloaded that are not as they were before."""
    for subject, names in _calls(agent, now).items():
        if subject in last:
            continue
        for name in names:
            old, new = before.slots.get(name, {}), now.slots.get(name, {})
            for slot in sorted(slot for slot in old.keys() & new.keys() if old[slot] != new[slot]):
                yield f"{name} slot {slot}: program {new[slot]} instead of {old[slot]}, {subject} was not reloaded"
    for endpoint, subject in _endpoints(agent).items():
        if subject in last:
            continue
        for array in POLICY_ARRAYS:
            was, has = before.policies.get(array, {}).get(endpoint), now.policies.get(array, {}).get(endpoint)
            if was is not None and has is not None and was != has:
                yield f"{array} slot {endpoint}: program {has} instead of {was}, {subject} was not reloaded"


def _endpoints(agent: Agent) -> dict[int, str]:
    node = agent.node
    return {node.endpoint(name).id: name for name in (HOST, HEALTH, *(pod.name for pod in node.pods))}


def _calls(agent: Agent, now: Snapshot) -> dict[str, list[str]]:
    """Return the names of the calls maps of each subject."""
    pods = {calls_map(ident, kind): name for ident, name in _endpoints(agent).items() for kind in ("", "custom_")}
    found: dict[str, list[str]] = {subject: [] for subject in agent.subjects}
    for name in calls_maps(now):
        devices = XDP_SUBJECT if xdp_of(name) is not None else HOST
        found.setdefault(OVERLAY_SUBJECT if name == OVERLAY_CALLS_MAP else pods.get(name, devices), []).append(name)
    return found


def _reused(before: Snapshot, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the calls maps that two loads share: the old load's tail calls lead to the new one (cilium issue 20691).

    Of each map the first two are told, however many share it. What packets meet of a map that a loader may share is
    found with the packets.
    """
    told: set[int] = set()
    seen = {ident: f"the load before, {name}" for name, ident in calls_maps(before).items()}
    for outcome in outcomes:
        for loaded in outcome.loaded:
            for name, ident in loaded.arrays.items():
                if not is_calls_map(name):
                    continue
                if ident in seen and ident not in told and not loaded.sharer:
                    told.add(ident)
                    yield f"{name}: load {outcome.generation} of {outcome.subject} uses the calls map of {seen[ident]}"
                seen[ident] = f"load {outcome.generation} of {outcome.subject}"

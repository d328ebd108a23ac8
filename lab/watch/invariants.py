"""The invariants that must hold for a node after every scenario, and their checks (docs/invariants.md)."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bpf import LIBRARY
from datapath.base.mapnames import CONNECTIONS, OVERLAY_CALLS_MAP, calls_map, is_calls_map
from datapath.errors import ReloadlabError
from datapath.kernel.bpf import prog_info
from datapath.kernel.hooks import HANDLE, Direction, filter_name
from datapath.kernel.inventory import program_by_id, program_maps
from datapath.kernel.pins import RETIRED
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec
from datapath.reload.connections import seconds
from datapath.reload.outcome import Outcome
from datapath.reload.plans import CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN, OVERLAY_SUBJECT
from lab.abi import reasons
from lab.agent.agent import Agent
from lab.node.topology import HEALTH, HOST, HOST_ENDPOINT, LXC_PREFIX, NODE
from lab.traffic.traffic import TrafficReport
from lab.watch import metrics
from lab.watch.metrics import Counters
from lab.watch.snapshot import Snapshot, calls_maps, take
from lab.watch.solicitations import LinkLocalSolicitations

UNLOAD_SECONDS = 5.0
"""Seconds in which the kernel frees the programs that a reload replaced."""

KERNEL_NAME = 15
"""Characters of a program's name that the kernel keeps (BPF_OBJ_NAME_LEN, with a final NUL)."""

_OWN_MAP = re.compile(r"cilium_(?P<kind>calls(?:_custom|_hostns|_netdev)?|policy)_(?P<number>\d{5})")


@dataclass(frozen=True, slots=True)
class Violation:
    """A violated invariant: its number in docs/invariants.md, and the finding."""

    invariant: int
    what: str

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.what}"

    def on(self, node: str) -> Violation:
        """Return the violation with the name of the node on which it was found."""
        return Violation(self.invariant, f"{node}: {self.what}")


class BadExpectation(ReloadlabError):
    """An expectation of the wrong type, which would match more than it should."""


@dataclass(frozen=True)
class Expected:
    """The changes that a scenario declares.

    `drops` is the exact number of packets by (reason, direction); no other drop counter may move. `migrated` names
    maps that may be replaced, `changed` maps whose content may differ. `other_path`: packets may change their path.
    A reload may give warnings that contain one of the texts in `warnings`.
    """

    drops: Mapping[tuple[int, int], int] = field(default_factory=dict)
    migrated: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    other_path: bool = False
    warnings: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("migrated", "changed", "warnings"):
            if isinstance(getattr(self, name), str):
                raise BadExpectation(f"{name} is the text {getattr(self, name)!r}: give a set of texts")
        if "" in self.warnings:
            raise BadExpectation("warnings: every warning contains the empty text")

    def and_also(self, **changes: Any) -> Expected:
        """Return a copy with other values of some fields; BadExpectation if there is no such field."""
        known = [each.name for each in fields(self)]
        for name in changes:
            if name not in known:
                raise BadExpectation(f"nothing called {name} can be expected; there are {', '.join(known)}")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The state and the counters of a node before a scenario.

    `solicitations` counts the kernels' own neighbour solicitations, whose drops are no violation; None if there is no
    such exception. `asked` is their number by interface at the time of the baseline.
    """

    snapshot: Snapshot
    counters: Counters
    solicitations: LinkLocalSolicitations | None = None
    asked: Mapping[str, int] = field(default_factory=dict)


def baseline(agent: Agent, solicitations: LinkLocalSolicitations | None = None) -> Baseline:
    """Read the state and the counters of a node; with `solicitations`, drops of them are no violation."""
    snapshot = take(agent.node)
    asked = solicitations.seen() if solicitations is not None else {}
    return Baseline(snapshot, metrics.read(agent.node), solicitations, asked)


def count_solicitations(stack: ExitStack, agent: Agent) -> LinkLocalSolicitations | None:
    """Have the kernels' own solicitations counted where they may be dropped: our own programs let them pass."""
    if agent.config.library == LIBRARY:
        return None
    return stack.enter_context(LinkLocalSolicitations(agent.node.netns(NODE)))


def check(
    agent: Agent,
    before: Baseline,
    *,
    expected: Expected | None = None,
    traffic: TrafficReport | None = None,
    outcomes: Sequence[Outcome] = (),
) -> list[Violation]:
    """Return all violations on the node now; invariants 8 and, without `traffic`, 7 are not checked.

    `outcomes` are the reloads on this node since `before`, in their order. Without them a program that the last reload
    should have replaced is found only if it uses a calls map.
    """
    expected = expected or Expected()
    now = take(agent.node)
    found = [Violation(1, what) for what in _hooks(agent, now)]
    found += [Violation(1, what) for what in _outdated(agent, now, outcomes)]
    found += [Violation(2, what) for what in _pins(agent, now)]
    found += [Violation(3, what) for what in _shared(before.snapshot, now, expected)]
    found += [Violation(4, what) for what in _generations(now)]
    found += [Violation(4, what) for what in _policy_slots(agent, now)]
    found += [Violation(4, what) for what in _empty_slots(agent, now)]
    found += [Violation(5, what) for what in _routes(agent, now)]
    found += check_drops(agent, before, expected)
    if traffic is not None:
        found += check_traffic(traffic, expected)
    found += [Violation(9, what) for what in _leaks(agent)]
    found += [Violation(9, what) for what in _orphans(agent, now)]
    found += [Violation(10, what) for what in _foreign(before.snapshot, now)]
    return found


def check_drops(agent: Agent, before: Baseline, expected: Expected) -> list[Violation]:
    """Return the drop counters that have not moved as expected (invariant 6)."""
    return [Violation(6, what) for what in _drops(agent, before, expected)]


def check_traffic(traffic: TrafficReport, expected: Expected) -> list[Violation]:
    """Return the violations that the traffic shows (invariant 7)."""
    return [Violation(7, what) for what in traffic.problems(other_path=expected.other_path)]


def check_warnings(outcomes: Iterable[Outcome], expected: Expected) -> list[Violation]:
    """Return the warnings of reloads that the scenario does not expect (invariant 11)."""
    return [
        Violation(11, f"reload of {outcome.subject} warns: {warning}")
        for outcome in outcomes
        for warning in outcome.warnings
        if not any(text in warning for text in expected.warnings)
    ]


def check_unchanged(before: Snapshot, now: Snapshot) -> list[Violation]:
    """Return what differs after a failed reload (invariant 8)."""
    names = ("filters", "pins", "contents", "slots", "policy slots", "routes")
    pairs = zip(names, before.datapath(), now.datapath(), strict=True)
    return [Violation(8, f"{name} differ: {_difference(old, new)}") for name, old, new in pairs if old != new]


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


def _hooks(agent: Agent, now: Snapshot) -> Iterator[str]:
    wanted = wanted_programs(agent)
    priority = agent.config.filter_priority
    for place in sorted(wanted.keys() | now.filters.keys(), key=lambda p: (p[0], str(p[1]))):
        where = f"{place[0]} {place[1]}"
        ours = [f for f in now.filters.get(place, ()) if f.is_ours]
        program = wanted.get(place)
        if program is None:
            yield from (f"{where}: {f.name} is left over" for f in ours)
        elif len(ours) != 1:
            yield f"{where}: {len(ours)} programs instead of {program}: {', '.join(f.name for f in ours) or 'none'}"
        elif (ours[0].name, ours[0].priority, ours[0].handle) != (filter_name(program, place[0]), priority, HANDLE):
            yield f"{where}: {ours[0].name} priority {ours[0].priority} handle {ours[0].handle:#x} instead of {program}"
        elif (name := _program_name(ours[0].program_id)) != program[:KERNEL_NAME]:
            yield f"{where}: program {name} instead of {program}"


def _program_name(program_id: int) -> str:
    """Return the kernel's name of a program, which has at most KERNEL_NAME characters."""
    with program_by_id(program_id) as fd:
        return prog_info(fd).name


def _outdated(agent: Agent, now: Snapshot, outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield the hooks whose program is older than the last reload of its endpoint.

    Program ids grow with time: a program that was loaded after that reload is not older.
    """
    last = {outcome.subject: min((each.program_id for each in outcome.attached), default=0) for outcome in outcomes}
    subjects = {agent.node.pod(name).ifname: name for name in (HEALTH, *(pod.name for pod in agent.node.pods))}
    for ifname, direction in wanted_programs(agent):
        subject = subjects.get(ifname, OVERLAY_SUBJECT if ifname == CILIUM_VXLAN else HOST)
        for item in now.filters.get((ifname, direction), ()):
            if item.is_ours and item.program_id < last.get(subject, 0):
                yield f"{ifname} {direction}: program {item.program_id} is older than the last reload of {subject}"


def _pins(agent: Agent, now: Snapshot) -> Iterator[str]:
    yield from (f"pin {name} is left over" for name in now.pins if ":" in name and RETIRED not in name)
    yield from _retired(now)
    pinned = {ident: name for name, ident in calls_maps(now).items()}
    pods = {agent.node.pod(name) for name in (HEALTH, *(pod.name for pod in agent.node.pods))}
    wanted = {pod.ifname: calls_map(pod.endpoint_id) for pod in pods}
    wanted |= {CILIUM_HOST: calls_map(HOST_ENDPOINT, "hostns_"), CILIUM_VXLAN: OVERLAY_CALLS_MAP}
    for (ifname, direction), found in now.filters.items():
        for item in found:
            own = now.calls.intersection(program_maps(item.program_id)) if item.is_ours else ()
            name = wanted.get(ifname, calls_map(item.ifindex, "netdev_"))
            for ident in own:
                if ident not in pinned:
                    yield f"{ifname} {direction}: {item.name} uses a calls map that is not pinned"
                elif pinned[ident] != name:
                    yield f"{ifname} {direction}: {item.name} uses {pinned[ident]} instead of {name}"


def _retired(now: Snapshot) -> Iterator[str]:
    """Yield replaced policy arrays that no program uses, or whose slots differ from those of the present array."""
    used = {ident for program in now.reachable for ident in program_maps(program)} if now.retired else set()
    for name, slots in now.retired.items():
        if now.pins[name].id not in used:
            yield f"pin {name} is left over: no program uses it"
        present = now.policies.get(name.partition(RETIRED)[0], {})
        if slots != present:
            yield f"pin {name}: slots differ from those of the new array: {_difference(present, slots)}"


def _shared(before: Snapshot, now: Snapshot, expected: Expected) -> Iterator[str]:
    for name, old in before.pins.items():
        if is_calls_map(name) or ":" in name:
            continue
        new = now.pins.get(name)
        if new is None:
            yield f"map {name} is not pinned any more"
        elif new.id != old.id and name not in expected.migrated:
            yield f"map {name} was replaced (id {old.id} -> {new.id})"
        elif old.content is None or new.content is None or name in expected.changed:
            continue
        elif name.startswith(CONNECTIONS):
            alive = {key for key, until in old.lifetimes.items() if until >= seconds()}
            lost = alive - new.content.keys()
            if lost:
                yield f"map {name}: {len(lost)} of {len(alive)} connections are gone"
        elif _padded(old.content) != _padded(new.content):
            yield f"map {name}: content differs: {_difference(old.content, new.content)}"


def _padded(content: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return a map's content without the zero bytes that a migration may append to keys and values."""
    return {key.rstrip(b"\0"): value.rstrip(b"\0") for key, value in content.items()}


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


def _routes(agent: Agent, now: Snapshot) -> Iterator[str]:
    node = agent.node
    for name in (HEALTH, *(pod.name for pod in node.pods)):
        pod = node.pod(name)
        for address in (pod.ipv4, pod.ipv6):
            found = now.routes.get(str(address))
            if agent.endpoint_routes and found != pod.ifindex:
                yield f"{name}: no direct route to {address}"
            elif not agent.endpoint_routes and found is not None:
                yield f"{name}: direct route to {address} is left over"


def _drops(agent: Agent, before: Baseline, expected: Expected) -> Iterator[str]:
    moved = metrics.read(agent.node).drops_since(before.counters)
    # Read after the drop counters, so that every dropped solicitation has been counted.
    own = _solicitations(before)
    for key in sorted(moved.keys() | expected.drops.keys()):
        have, want, allowed = moved.get(key, 0), expected.drops.get(key, 0), own.get(key, 0)
        if not want <= have <= want + allowed:
            more = f", and up to {allowed} solicitations of the kernel" if allowed else ""
            yield f"{have} packets dropped as {metrics.describe(*key)} instead of {want}{more}"


def _solicitations(before: Baseline) -> Counter[tuple[int, int]]:
    """Return the kernels' own solicitations since the baseline, with the key that their drops would have."""
    found: Counter[tuple[int, int]] = Counter()
    for ifname, count in before.solicitations.seen().items() if before.solicitations is not None else ():
        direction = metrics.EGRESS if ifname.startswith(LXC_PREFIX) else metrics.INGRESS
        found[reasons.UNKNOWN_TARGET, direction] += count - before.asked.get(ifname, 0)
    return found


def _leaks(agent: Agent) -> Iterator[str]:
    """Yield programs that nothing reaches. The kernel frees programs with a delay: wait for it."""
    deadline = time.monotonic() + UNLOAD_SECONDS
    while extra := (now := take(agent.node)).programs - now.reachable:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if extra:
        yield f"{len(extra)} programs are loaded that nothing reaches: {_some(extra)}"


def _orphans(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield the pins of endpoints and devices that are gone. A pin keeps its map, and a calls map its programs."""
    ids = {endpoint.id for endpoint in agent.node.endpoints()}
    devices = {item.ifindex for found in now.filters.values() for item in found if item.is_ours}
    for name in now.pins:
        match = _OWN_MAP.fullmatch(name)
        if match and int(match["number"]) not in (devices if match["kind"] == "calls_netdev" else ids):
            yield f"map {name} is pinned for an endpoint or device that is gone"


def _foreign(before: Snapshot, now: Snapshot) -> Iterator[str]:
    for (ifname, direction), found in before.filters.items():
        for item in found:
            if not item.is_ours and item not in now.filters.get((ifname, direction), ()):
                yield f"{ifname} {direction}: foreign filter {item.name or item.kind} is gone"


def _difference(old: object, new: object) -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [k for k in (*old, *(k for k in new if k not in old)) if old.get(k) != new.get(k)]
        found = (f"{key}: {_difference(old.get(key), new.get(key))}" for key in keys[:3])
        return "; ".join(found) + (" ..." if len(keys) > 3 else "")
    return f"{old} -> {new}"


def _some(ids: Iterable[int]) -> str:
    return ", ".join(str(i) for i in sorted(ids)[:5])

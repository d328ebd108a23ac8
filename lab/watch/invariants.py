"""The invariants that must hold for a node after every scenario, and their checks (docs/invariants.md)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bpf import is_ours
from datapath.base import mapnames
from datapath.errors import ReloadlabError
from datapath.reload.outcome import FailedReload, Outcome
from lab.agent.agent import Agent
from lab.system.pace import slowness
from lab.traffic.report import KINDS, TrafficReport
from lab.watch import metrics
from lab.watch.checks.connections import lost_connections
from lab.watch.checks.drops import check_drops, check_kernel, check_uncounted, check_verdicts
from lab.watch.checks.generation import check_generation
from lab.watch.checks.hooks import check_foreign, check_hooks
from lab.watch.checks.journal import check_journal
from lab.watch.checks.leaks import check_descriptors, check_leaks
from lab.watch.checks.maps import Changed, Objects, check_counters_rise, check_maps
from lab.watch.checks.mixed_loads import check_mixed_loads
from lab.watch.checks.network import check_network
from lab.watch.checks.objects import object_files, read_objects
from lab.watch.checks.pins import check_orphans, check_pins
from lab.watch.checks.published import check_published
from lab.watch.checks.routes import check_routes
from lab.watch.checks.slots import check_slots
from lab.watch.checks.text import difference
from lab.watch.checks.xdp import check_xdp
from lab.watch.descriptors import Descriptors, own_descriptors
from lab.watch.drops import NOTHING, Dropped, Drops
from lab.watch.journal import Journal
from lab.watch.metrics import Counters
from lab.watch.snapshot import DATAPATH, Snapshot, take
from lab.watch.violation import Violation

SETTLE_SECONDS, STILL_SECONDS = 1.0, 0.1
"""Seconds in which the last packets of a scenario come to their end, and without a drop if some were too many."""


class BadExpectation(ReloadlabError):
    """An expectation of the wrong type, which would match more than it should."""


OF_FLOWS = ("other_path", "kernel_drops", "findings")
"""The fields of Expected that say something of the traffic, and not of a node."""


@dataclass(frozen=True)
class Expected:
    """The changes that a scenario declares.

    `drops` is the exact number of packets by (reason, direction); no other drop counter may move. `migrated` names
    maps that may be replaced, `changed` maps whose content may differ, or by name the keys whose entries may.
    `other_path`: packets may change their path. A reload may give warnings that contain one of the texts in `warnings`;
    what changes in the network of the node or its pods must contain one of the texts in `network`, and the path of what
    others pin meanwhile one of those in `pins`; what is missing for a moment must contain one of the texts in
    `moments`. The kernel may drop packets of the flows for the reasons in
    `kernel_drops` (enum skb_drop_reason, such as IP_OUTNOROUTES), and the traffic may show the kinds of findings in
    `findings` (lab.traffic.report.Kind, such as retransmit). `foreign`: programs of other sources than ours ran, at
    some time.
    """

    drops: Mapping[tuple[int, int], int] = field(default_factory=dict)
    migrated: frozenset[str] = frozenset()
    changed: Changed = frozenset()
    other_path: bool = False
    warnings: frozenset[str] = frozenset()
    network: frozenset[str] = frozenset()
    pins: frozenset[str] = frozenset()
    moments: frozenset[str] = frozenset()
    kernel_drops: frozenset[str] = frozenset()
    findings: frozenset[str] = frozenset()
    foreign: bool = False

    def __post_init__(self) -> None:
        for name in ("migrated", "changed", "warnings", "network", "pins", "moments", "kernel_drops", "findings"):
            if isinstance(getattr(self, name), str):
                raise BadExpectation(f"{name} is the text {getattr(self, name)!r}: give a set of texts")
        for name in ("warnings", "network", "pins", "moments"):
            if "" in getattr(self, name):
                raise BadExpectation(f"{name}: every text contains the empty one")
        if unknown := sorted(self.findings - KINDS):
            raise BadExpectation(f"findings: there is no kind {unknown[0]}; there are {', '.join(sorted(KINDS))}")

    def and_also(self, **changes: Any) -> Expected:
        """Return a copy with other values of some fields; BadExpectation if there is no such field."""
        known = [each.name for each in fields(self)]
        for name in changes:
            if name not in known:
                raise BadExpectation(f"nothing called {name} can be expected; there are {', '.join(known)}")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The state, counters and object files of a node before a scenario, and what this process had open of it."""

    snapshot: Snapshot
    counters: Counters
    descriptors: Descriptors
    objects: Objects


def baseline(agent: Agent) -> Baseline:
    """Read the state and the counters of a node."""
    descriptors = own_descriptors(agent.node, idle_sockets=agent.loader.idle_sockets)
    return Baseline(take(agent.node), metrics.read(agent.node), descriptors, object_files(agent))


def check(
    agent: Agent,
    before: Baseline,
    *,
    expected: Expected | None = None,
    traffic: TrafficReport | None = None,
    outcomes: Sequence[Outcome] | None = None,
    undone: Sequence[FailedReload] = (),
    drops: Drops | None = None,
    journal: Journal | None = None,
    new_policies: bool = False,
) -> list[Violation]:
    """Return all violations on the node now; invariants 8 and, without `traffic`, 7 are not checked.

    `journal` has recorded the changes of the node's network since before the baseline; it is stopped. Without it,
    invariant 15 is not checked.

    `new_policies` says that policies were applied since `before`: the counters of their entries may begin anew.

    `outcomes` are all reloads on this node since `before` whose load stays; none of them may be missing. Without them a
    program of another load than the last is found only if it uses a calls map. `undone` are those that failed.
    """
    expected = expected or Expected()
    now, objects, counters = take(agent.node), read_objects(agent), metrics.read(agent.node)
    found = [
        *check_hooks(agent, now, expected.warnings),
        *check_xdp(agent, before.snapshot, now),
        *check_pins(agent, now),
        *check_maps(
            before.snapshot,
            now,
            before.objects,
            migrated=expected.migrated,
            changed=expected.changed,
            new_policies=new_policies,
        ),
        *check_counters_rise(before.counters, counters),
        *check_slots(agent, now, objects),
        *check_published(agent, now, objects),
        *check_mixed_loads(before.counters, counters),
        *check_routes(agent, now),
        *check_network(before.snapshot, now, expected.network, foreign=expected.foreign or agent.external is not None),
        *check_counters(agent, before, expected, drops),
    ]
    # The journal's socket was open at the baseline: closed first, it would make up for one that leaked.
    found += check_descriptors(agent, before.descriptors, now)
    if outcomes is not None:
        found += check_generation(agent, before.snapshot, now, outcomes)
    if journal is not None:
        gaps = check_journal(agent, before.snapshot, now, journal.stop(), outcomes or (), undone)
        found += [gap for gap in gaps if not any(text in gap.what for text in expected.moments)]
    if traffic is not None:
        found += check_traffic(traffic, expected)
    found += check_leaks(agent, before.snapshot, now, objects, expected.pins)
    found += check_orphans(agent, now)
    found += check_foreign(before.snapshot, now)
    return found


def check_counters(agent: Agent, before: Baseline, expected: Expected, drops: Drops | None = None) -> list[Violation]:
    """Return the drops that have not been counted as expected (invariant 6), or not at all (invariant 12).

    With `drops` it is known whose packets they were, and those of the kernels themselves may be dropped. Nothing is
    counted in one place while cilium_metrics is replaced: then only what the traffic shows is told.
    """
    if mapnames.METRICS in expected.migrated:
        return []
    name, ours = agent.node.name, is_ours(agent.config.library) and not expected.foreign
    counted = _counted(agent, before.counters, expected.drops, foreign=not ours)
    # Read after the counters, so that every counted drop has been seen.
    dropped = drops.read() if drops is not None else NOTHING
    return [
        *check_drops(counted, expected.drops, dropped, name, foreign=not ours),
        # The sources of others may be told to report fewer verdicts.
        *(check_verdicts(dropped, name) if ours else ()),
        *check_uncounted(counted, dropped, name),
    ]


def _counted(
    agent: Agent, before: Counters, expected: Mapping[tuple[int, int], int], *, foreign: bool
) -> dict[tuple[int, int], int]:
    """Return the drops that are counted since `before`: the same twice, and none missing, for at most SETTLE_SECONDS.

    Packets that were sent may still lie in a queue of the kernel when the traffic has stopped. Where more are counted
    than expected, which is wrong of all but `foreign` sources, what is missing has been dropped for another reason:
    then STILL_SECONDS without another one are enough.
    """
    begun = changed = time.monotonic()
    earlier: dict[tuple[int, int], int] | None = None
    while True:
        found, now = metrics.read(agent.node).drops_since(before), time.monotonic()
        complete = found == earlier and all(found.get(key, 0) >= count for key, count in expected.items())
        changed = changed if found == earlier else now
        is_wrong = not foreign and any(count > expected.get(key, 0) for key, count in found.items())
        is_still = is_wrong and now - changed > STILL_SECONDS * slowness()
        if complete or is_still or now - begun > SETTLE_SECONDS * slowness():
            return found
        earlier = found
        time.sleep(0.01)


def check_traffic(traffic: TrafficReport, expected: Expected, *, in_order: bool = True) -> list[Violation]:
    """Return the violations that the traffic shows (invariant 7); unless `in_order`, in whatever order packets came."""
    found = traffic.findings(other_path=expected.other_path)
    unjudged = expected.findings if in_order else {*expected.findings, "reordered"}
    wrong = (each for each in found if each.kind not in unjudged)
    return [Violation(7, str(each), each.at, each.flow if each.kind == "lost" else "") for each in wrong]


def check_kernel_drops(dropped: Dropped, phases: Sequence[TrafficReport], expected: Expected) -> list[Violation]:
    """Return the packets of flows that the kernel dropped while the traffic ran (invariant 12)."""
    return check_kernel(dropped, phases, expected.kernel_drops)


def check_warnings(outcomes: Iterable[Outcome], expected: Expected) -> list[Violation]:
    """Return the warnings of reloads that the scenario does not expect (invariant 11)."""
    return [
        Violation(11, f"reload of {outcome.subject} warns: {warning}")
        for outcome in outcomes
        for warning in outcome.warnings
        if not any(text in warning for text in expected.warnings)
    ]


def check_files(before: Mapping[Path, bytes], now: Mapping[Path, bytes]) -> list[Violation]:
    """Return the files of endpoints that a failed reload has not left as they were (invariant 8)."""
    differing = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    said = {path: "is new" if path not in before else "is another" if path in now else "is gone" for path in differing}
    return [Violation(8, f"file {path.parent.name}/{path.name} {said[path]}") for path in differing]


def check_unchanged(before: Snapshot, now: Snapshot) -> list[Violation]:
    """Return what differs after a failed reload (invariant 8), but for the files."""
    pairs = zip(DATAPATH, before.datapath(), now.datapath(), strict=True)
    found = [Violation(8, f"{name} differ: {difference(old, new)}") for name, old, new in pairs if old != new]
    return found + [Violation(8, what) for what in lost_connections(before, now)]

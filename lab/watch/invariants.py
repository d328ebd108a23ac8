"""The invariants that must hold for a node after every scenario, and their checks (docs/invariants.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bpf import is_ours
from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome
from lab.abi import reasons
from lab.agent.agent import Agent
from lab.node.topology import LXC_PREFIX, NODE
from lab.traffic.report import TrafficReport
from lab.watch import metrics
from lab.watch.checks.generation import check_generation
from lab.watch.checks.hooks import check_foreign, check_hooks
from lab.watch.checks.leaks import check_leaks
from lab.watch.checks.maps import check_maps
from lab.watch.checks.mixed_loads import check_mixed_loads
from lab.watch.checks.pins import check_orphans, check_pins
from lab.watch.checks.routes import check_routes
from lab.watch.checks.slots import check_slots
from lab.watch.checks.text import difference
from lab.watch.metrics import Counters
from lab.watch.snapshot import Snapshot, take
from lab.watch.solicitations import LinkLocalSolicitations
from lab.watch.violation import Violation


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
    if is_ours(agent.config.library):
        return None
    return stack.enter_context(LinkLocalSolicitations(agent.node.netns(NODE)))


def check(
    agent: Agent,
    before: Baseline,
    *,
    expected: Expected | None = None,
    traffic: TrafficReport | None = None,
    outcomes: Sequence[Outcome] | None = None,
) -> list[Violation]:
    """Return all violations on the node now; invariants 8 and, without `traffic`, 7 are not checked.

    `outcomes` are all reloads on this node since `before`; none of them may be missing. Without them a program of
    another load than the last is found only if it uses a calls map.
    """
    expected = expected or Expected()
    now = take(agent.node)
    found = [
        *check_hooks(agent, now),
        *check_pins(agent, now),
        *check_maps(before.snapshot, now, migrated=expected.migrated, changed=expected.changed),
        *check_slots(agent, now),
        *check_mixed_loads(before.counters, metrics.read(agent.node)),
        *check_routes(agent, now),
        *check_drops(agent, before, expected),
    ]
    if outcomes is not None:
        found += check_generation(agent, before.snapshot, now, outcomes)
    if traffic is not None:
        found += check_traffic(traffic, expected)
    found += check_leaks(agent)
    found += check_orphans(agent, now)
    found += check_foreign(before.snapshot, now)
    return found


def check_drops(agent: Agent, before: Baseline, expected: Expected) -> list[Violation]:
    """Return the drop counters that have not moved as expected (invariant 6)."""
    return [Violation(6, what) for what in _drops(agent, before, expected)]


def check_traffic(traffic: TrafficReport, expected: Expected) -> list[Violation]:
    """Return the violations that the traffic shows (invariant 7)."""
    return [Violation(7, str(found), found.at) for found in traffic.findings(other_path=expected.other_path)]


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
    return [Violation(8, f"{name} differ: {difference(old, new)}") for name, old, new in pairs if old != new]


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

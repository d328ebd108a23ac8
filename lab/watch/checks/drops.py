"""Drops: those that cilium_metrics counts (invariant 6), and those of the kernel itself (invariant 12)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lab.abi import reasons
from lab.system.symbols import places
from lab.system.words import plural
from lab.traffic.report import TrafficReport
from lab.watch import metrics
from lab.watch.attribution import of_the_kernel
from lab.watch.drop_events import DropEvent
from lab.watch.drops import Dropped
from lab.watch.kernel_drops import NETKIT, NOT_SPECIFIED, KernelDrop
from lab.watch.net_counters import by_reasons
from lab.watch.violation import Violation

VERDICTS = frozenset(("TC_INGRESS", "TC_EGRESS", "XDP", NETKIT))
"""Reasons of the kernel that mean: a program said so. Ours counts the packet in cilium_metrics, for its own reason."""

HARMLESS = frozenset(
    (
        # What a closed socket had not sent or read yet.
        *("QUEUE_PURGE", "SOCKET_CLOSE"),
        # The copy for somebody who captures packets: the packet itself goes on.
        "PACKET_SOCK_ERROR",
        # The receiver has the data already, or had acknowledged more: TCP sent something twice, which traffic counts.
        *("TCP_OLD_DATA", "TCP_OLD_ACK", "TCP_TOO_OLD_ACK", "TCP_OFOMERGE", "TCP_OLD_SEQUENCE"),
        # Overtaken by what was sent later. Data is sent again, which traffic counts, or was already: on a machine that
        # stands still for the time-out of a retransmission, the first copy comes after the second.
        *("TCP_RFC7323_PAWS", "TCP_RFC7323_PAWS_ACK"),
    )
)
"""Reasons for which a flow's packet may die although nothing is lost."""

NO_SOCKET = "NO_SOCKET"
"""What becomes of a packet for which nobody listens."""

PREFILTER = "bpf_xdp.c"
"""Where packets are denied before there is a policy that could report a verdict."""

POLICY_REASONS = frozenset((reasons.POLICY_DENIED, reasons.POLICY_DENIED_BY_DENYLIST))
"""Reasons of drops that a policy decides: no rule allows the packet, or one denies it."""

_SHOWN = 3
"""Places or owners that one violation names."""

Key = tuple[int, int]
"""Reason and direction of a drop in cilium_metrics."""


def check_drops(
    counted: Mapping[Key, int], expected: Mapping[Key, int], dropped: Dropped, node: str, *, foreign: bool
) -> list[Violation]:
    """Return the drop counters of a node that have not moved as expected (invariant 6), and whose the packets were.

    `counted` are the drops in cilium_metrics. `foreign` sources may drop what kernels send by themselves: Cilium's
    answer neighbour solicitations for the router and for endpoints, and drop all others.
    """
    events, ownership = dropped.programs.get(node, ()), dropped.ownership
    own = {event for event in events if foreign and _is_of_the_kernel(event)}
    # Of these, some notifications may be lost among those of other packets; the kernel tells of few drops besides.
    unseen = max(len(_shot(dropped, node, _is_of_the_kernel)) - len(own), 0) if foreign else 0
    found = []
    for key in sorted(counted.keys() | expected.keys()):
        have, want = counted.get(key, 0), expected.get(key, 0)
        mine = [event for event in events if event.reason == key[0]]
        if not want <= have <= want + sum(event in own for event in mine) + unseen:
            known = _listed(f"{ownership.owner(e.packet)}{f' ({e.place})' if e.place else ''}" for e in mine)
            what = (
                f"{plural(have, 'packet')} dropped as {metrics.describe(*key)} instead of {want}{known and ': '}{known}"
            )
            found.append(Violation(6, what, tuple(event.time_ns for event in mine if event not in own)))
    return found


def check_verdicts(dropped: Dropped, node: str) -> list[Violation]:
    """Return the packets of a node that a policy refused without reporting its verdict (invariant 6).

    Whoever asks why a packet died hears of the verdict first: each of ours writes it right before the drop.
    """
    refusals = dropped.refusals.get(node)
    if refusals is None:
        return []
    found = []
    for reason in sorted(POLICY_REASONS):
        events = (event for event in dropped.programs[node] if event.file != PREFILTER)
        refused = [event for event in events if event.reason == reason]
        if (missing := len(refused) - refusals.get(reason, 0)) > 0:
            known = _listed(dropped.ownership.owner(event.packet) for event in refused)
            dropped_as = f"{plural(len(refused), 'packet')} dropped as {reasons.describe(reason)}"
            what = f"{missing} of {dropped_as} without a policy verdict"
            found.append(Violation(6, f"{what}: {known}", tuple(event.time_ns for event in refused)))
    return found


def check_uncounted(counted: Mapping[Key, int], dropped: Dropped, node: str) -> list[Violation]:
    """Return the packets that programs on a node dropped without counting them in cilium_metrics (invariant 12)."""
    return [*_untold(counted, dropped, node), *_otherwise(counted, dropped, node)]


def _untold(counted: Mapping[Key, int], dropped: Dropped, node: str) -> Iterator[Violation]:
    """Yield what programs had the kernel drop, if it is more than all counters together."""
    ownership = dropped.ownership
    shot = _shot(dropped, node, lambda drop: drop.packet is not None and ownership.is_of_scenario(drop.packet))
    missing = len(shot) - sum(counted.values())
    if missing > 0:
        known = _listed(f"{ownership.owner(d.packet)} ({d.reason} of {d.ifname})" for d in shot)
        what = f"{plural(missing, 'packet')} dropped by a program that cilium_metrics does not count: {known}"
        yield Violation(12, what, tuple(drop.time_ns for drop in shot))


def _otherwise(counted: Mapping[Key, int], dropped: Dropped, node: str) -> Iterator[Violation]:
    """Yield what programs say to have dropped for a reason, if it is more than is counted for that reason.

    A notification does not tell the direction by which its drop is counted.
    """
    ownership = dropped.ownership
    told: defaultdict[int, list[DropEvent]] = defaultdict(list)
    for event in dropped.programs.get(node, ()):
        if event.packet is not None and ownership.is_of_scenario(event.packet):
            told[event.reason].append(event)
    for reason, events in sorted(told.items()):
        missing = len(events) - sum(count for key, count in counted.items() if key[0] == reason)
        if missing > 0:
            known = _listed(f"{ownership.owner(e.packet)}{f' ({e.place})' if e.place else ''}" for e in events)
            dropped_as = f"{plural(missing, 'packet')} dropped as {reasons.describe(reason)}"
            what = f"{dropped_as} that cilium_metrics does not count so"
            yield Violation(12, f"{what}: {known}", tuple(event.time_ns for event in events))


def _shot(dropped: Dropped, node: str, wanted: Callable[[KernelDrop], bool]) -> list[KernelDrop]:
    """Return the wanted packets that programs on a node had the kernel drop."""
    return [
        drop
        for drop in dropped.kernel
        if drop.reason in VERDICTS and dropped.namespaces[drop.netns].node == node and wanted(drop)
    ]


def _is_of_the_kernel(drop: DropEvent | KernelDrop) -> bool:
    return drop.packet is not None and of_the_kernel(drop.packet) is not None


def check_kernel(
    dropped: Dropped, phases: Sequence[TrafficReport], expected: frozenset[str] = frozenset()
) -> list[Violation]:
    """Return the packets of flows that the kernel dropped while traffic ran (invariant 12).

    `expected` are reasons that are no violation, such as IP_OUTNOROUTES. Where the kernel does not tell of its drops,
    every counter of losses that has moved is a violation, whosever the packets were, but for those of these reasons.
    A kernel that is not precise has drops without a reason that are none: such a drop says only where a packet that
    did not arrive has gone.
    """
    if not dropped.kernel_watched:
        return [
            Violation(12, f"{place}: the kernel counts {plural(by, 'lost packet')} ({name})")
            for (place, name), by in sorted(dropped.counters.items())
            if not by_reasons(name, expected)
        ]
    ownership, harmless = (
        dropped.ownership,
        HARMLESS | VERDICTS | expected | (frozenset() if dropped.precise else {NOT_SPECIFIED}),
    )
    found: defaultdict[tuple[str, str, int, str], list[int]] = defaultdict(list)
    for drop in dropped.kernel:
        running = any(phase.started_ns <= drop.time_ns <= phase.stopped_ns for phase in phases)
        if drop.reason in harmless or not running or drop.packet is None:
            continue
        flow = ownership.flow(ownership.inside(drop.packet))
        if flow is None or (drop.reason == NO_SOCKET and ownership.without_socket(flow)):
            continue
        found[flow, drop.reason, drop.location, dropped.place(drop)].append(drop.time_ns)
    names = places(location for _, _, location, _ in found)
    return [
        Violation(
            12,
            f"{flow}: {plural(len(at), 'packet')} dropped by the kernel: {reason} at {names[location]}{where}",
            tuple(at),
        )
        for (flow, reason, location, where), at in found.items()
    ]


def _listed(items: Iterable[str]) -> str:
    """Return `3 of this, 1 of that`, the most frequent first."""
    found: defaultdict[str, int] = defaultdict(int)
    for item in items:
        found[item] += 1
    ordered = sorted(found, key=lambda item: -found[item])
    shown = ", ".join(f"{found[item]} of {item}" for item in ordered[:_SHOWN])
    return shown + (" ..." if len(ordered) > _SHOWN else "")

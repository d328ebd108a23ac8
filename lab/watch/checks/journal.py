"""Invariant 15: what must be there is there at every moment, not only before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from datapath.endpoint import Attachment
from datapath.kernel.hooks import LINKED, Direction
from datapath.reload.outcome import FailedReload, Outcome, Span
from lab.agent.agent import Agent
from lab.node.topology import PodFacts
from lab.watch.checks.replay import Hook, Replay
from lab.watch.journal import Recorded
from lab.watch.networkdiff import names
from lab.watch.snapshot import Snapshot
from lab.watch.violation import Violation


def check_journal(
    agent: Agent,
    before: Snapshot,
    now: Snapshot,
    recorded: Recorded,
    outcomes: Sequence[Outcome],
    undone: Sequence[FailedReload] = (),
) -> Iterator[Violation]:
    """Yield the moments in which a hook was empty, an endpoint had no route, or a link was down.

    A pod's egress hook must have its program whenever a direct route leads to the pod: nothing else enforces the policy
    then. Any other hook that has a program before and after may be without one only while a reload takes it off by its
    plan, also one that was `undone`, until its rollback attaches it again. The kernel tells nothing of programs at tcx
    hooks: a hook that had one is left out. After messages were lost nothing is known: only what came before them is
    looked at.
    """
    watch = _Watch(before, now, (*outcomes, *undone))
    replay = Replay(before)
    lost = min(recorded.lost_ns, default=None)
    watch.look(replay, {*names(before.around.network)}, 0)
    for change in recorded.changes:
        if lost is not None and change.time_ns >= lost:
            break
        concerned = replay.apply(change)
        if concerned:
            watch.look(replay, concerned, change.time_ns)
    yield from watch.found
    yield from watch.left()


class _Watch:
    """Remembers since when something is missing, and what has been missing for a time."""

    def __init__(self, before: Snapshot, now: Snapshot, reloads: Sequence[Outcome | FailedReload]) -> None:
        self._reloads = reloads
        self._names = {**names(before.around.network), **names(now.around.network)}
        stay = names(before.around.network).keys() & names(now.around.network).keys()
        self._pods = {p.ifindex: p for p in (now.around.facts.health, *now.around.facts.pods) if p.ifindex in stay}
        self._hooks = _hooks(before) & _hooks(now)
        self._links = {ifindex for ifindex in stay if _up(before, now, self._names[ifindex])}
        self._by_tcx = _tcx(before) | _tcx(now)
        self._switched = {
            f"{each.ifname} {each.direction}"
            for reload in reloads
            for each in reload.attached
            if each.attachment is Attachment.TCX
        }
        self._since: dict[tuple[int, str], int] = {}
        self.found: list[Violation] = []

    def look(self, replay: Replay, concerned: set[int], time_ns: int) -> None:
        """See what is missing at a moment; with 0 for its time it is the beginning, and nothing was taken away."""
        # The node route is the way to every pod that has none of its own.
        ifindexes = {*concerned, *self._pods} if replay.cilium_host in concerned else concerned
        missing = {(ifindex, what) for ifindex in ifindexes for what in self._missing(replay, ifindex)}
        for key in sorted(missing - self._since.keys()):
            self._since[key] = time_ns
        for key in [key for key in self._since if key[0] in ifindexes and key not in missing]:
            start = self._since.pop(key)
            if start and not self._planned(key[1], start):
                text = f"{key[1]} for {(time_ns - start) / 1e6:.2f} ms"
                self.found.append(Violation(15, text, (start, time_ns)))

    def left(self) -> Iterator[Violation]:
        """Yield what is missing since some moment, and still is."""
        for (_, what), start in self._since.items():
            if start and not self._planned(what, start):
                yield Violation(15, f"{what} from then on", (start,))

    def _missing(self, replay: Replay, ifindex: int) -> Iterator[str]:
        for direction in Direction:
            place = f"{self._names.get(ifindex)} {direction}"
            if (ifindex, direction) not in self._hooks or place in self._switched:
                continue
            if not replay.programs((ifindex, direction)):
                yield f"{place} had no program"
        if ifindex in self._pods:
            yield from self._pod(replay, self._pods[ifindex])
        if ifindex in self._links and ifindex in replay.down:
            yield f"interface {self._names[ifindex]} was down"

    def _pod(self, replay: Replay, pod: PodFacts) -> Iterator[str]:
        direct = [address for address in (pod.ipv4, pod.ipv6) if pod.ifindex in replay.direct(address)]
        hook = (pod.ifindex, Direction.EGRESS)
        by_tcx = hook in self._by_tcx or f"{pod.ifname} {Direction.EGRESS}" in self._switched
        if direct and not replay.programs(hook) and not by_tcx:
            yield f"{pod.name}: a direct route led to {pod.ifname}, whose egress hook had no program"
        for address in (pod.ipv4, pod.ipv6):
            if address not in direct and not replay.has_node_route(address):
                yield f"{pod.name}: no route led to {address}"

    def _planned(self, what: str, time_ns: int) -> bool:
        """Tell whether a reload took a program off by its plan, to be without one at its end, and none attached since.

        A change is read later than it happened, on a busy machine maybe when the step has ended.
        """
        planned, begun_ns = False, 0
        for reload in self._reloads:
            steps = [(verb, span.work.start_ns) for span in reload.spans if (verb := _verb(span, what))]
            for verb, start_ns in steps:
                if begun_ns < start_ns <= time_ns:
                    planned, begun_ns = verb == "detach" and steps[-1][0] == "detach", start_ns
        return planned


def _verb(span: Span, what: str) -> str:
    """Return `attach` or `detach` if a step does that at the hook that is missing; else nothing."""
    verb, _, direction = span.step.partition(" ")
    concerned = verb in ("attach", "detach") and f"{span.target} {direction} had no program" == what
    return verb if concerned else ""


def _hooks(snapshot: Snapshot) -> set[Hook]:
    """Return the hooks with a program of ours, but for those that `_pod` looks at."""
    pods = {pod.ifindex for pod in (snapshot.around.facts.health, *snapshot.around.facts.pods)}
    ours: Iterable[Hook] = (
        (item.ifindex, item.direction)
        for found in snapshot.filters.values()
        for item in found
        if item.is_ours and item.kind not in LINKED
    )
    return {hook for hook in ours if not (hook[0] in pods and hook[1] is Direction.EGRESS)}


def _tcx(snapshot: Snapshot) -> set[Hook]:
    """Return the hooks with a program of ours by tcx, of which the kernel tells no change."""
    return {
        (i.ifindex, i.direction) for found in snapshot.filters.values() for i in found if i.is_ours and i.kind in LINKED
    }


def _up(before: Snapshot, now: Snapshot, name: str) -> bool:
    links = [snapshot.around.network.links.get(name) for snapshot in (before, now)]
    return all(link is not None and link.flags & 1 for link in links)

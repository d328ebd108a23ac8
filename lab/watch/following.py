"""What happened between two looks at a node: reloads, and packets a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from datapath.reload.plans import XDP_SUBJECT
from lab.abi.reasons import FIRST_DROP
from lab.watch.live import Hook, Look


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A reload that is over: the hooks of `subject` have these programs; `at_ns` is when the last of them was loaded.

    `generation` is None where the object does not tell. Of several reloads between two looks, it is the last.
    """

    subject: str
    generation: int | None
    at_ns: int
    programs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """What went on between two looks, by the second: packets of each interface, and of cilium_metrics."""

    seconds: float
    received: Mapping[str, float] = field(default_factory=dict)
    sent: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, float] = field(default_factory=dict)
    packets: Mapping[tuple[int, int], float] = field(default_factory=dict)


@dataclass(slots=True)
class Follower:
    """Follows a node: `follow` takes the looks in their order, and returns the reloads since the one before.

    A reload under way is told when it is over. `rates` are those between the last two looks, None after the first.
    """

    rates: Rates | None = None
    _before: Look | None = None
    _settled: dict[str, frozenset[int]] = field(default_factory=dict)

    def follow(self, look: Look) -> tuple[Reloaded, ...]:
        """Return the reloads that are new in this look."""
        busy = {each.subject for each in look.under_way}
        found = []
        for subject, hooks in hooks_of(look).items():
            programs = frozenset(hook.program_id for hook in hooks)
            settled = self._settled.get(subject)
            if settled is None or (subject not in busy and programs != settled):
                self._settled[subject] = programs
                if settled is not None and programs - settled:
                    found.append(_reloaded(subject, [hook for hook in hooks if hook.program_id not in settled]))
        self.rates = None if self._before is None else _rates(self._before, look)
        self._before = look
        return tuple(sorted(found, key=lambda reloaded: reloaded.at_ns))


def hooks_of(look: Look) -> dict[str, list[Hook]]:
    """Return the hooks by what is reloaded to give them programs."""
    found: dict[str, list[Hook]] = {}
    for interface in look.interfaces:
        for hook in interface.hooks:
            subject = XDP_SUBJECT if hook.hook == XDP_SUBJECT else interface.subject
            found.setdefault(subject, []).append(hook)
    return found


def last_reload(look: Look) -> Reloaded | None:
    """Return the last reload of the node, as the programs at its hooks tell it; None without a program."""
    each = [_reloaded(subject, hooks) for subject, hooks in hooks_of(look).items()]
    return max(each, key=lambda reloaded: reloaded.at_ns, default=None)


def drops(packets: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """Return of packets by (reason, direction) those that were dropped."""
    return {key: count for key, count in packets.items() if key[0] >= FIRST_DROP}


def _reloaded(subject: str, hooks: list[Hook]) -> Reloaded:
    last = max(hooks, key=lambda hook: hook.loaded_ns)
    return Reloaded(subject, last.generation, last.loaded_ns, tuple(hook.program_id for hook in hooks))


def _rates(before: Look, now: Look) -> Rates:
    seconds = (now.clock_ns - before.clock_ns) / 1e9
    old = {(each.name, each.ifindex): each for each in before.interfaces}
    pairs = [(old[each.name, each.ifindex], each) for each in now.interfaces if (each.name, each.ifindex) in old]
    return Rates(
        seconds,
        {b.name: (b.rx_packets - a.rx_packets) / seconds for a, b in pairs},
        {b.name: (b.tx_packets - a.tx_packets) / seconds for a, b in pairs},
        {b.name: (b.rx_dropped + b.tx_dropped - a.rx_dropped - a.tx_dropped) / seconds for a, b in pairs},
        # A migration of the map may begin anew: then the new count is all there is.
        {key: max(count - before.packets.get(key, 0), 0) / seconds for key, count in now.packets.items()},
    )

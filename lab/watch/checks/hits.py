"""Invariant 4: no packet meets a program of a load that another has replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lab.system.words import plural
from lab.watch.metrics import Counters
from lab.watch.violation import Violation


def check_hits(before: Counters, now: Counters, replaced: Mapping[int, str]) -> Iterator[Violation]:
    """Yield the replaced loads that have handled packets between two readings of a node's counters.

    `replaced` names by the generation of each such load what it was the load of. Our programs count packets by their
    load in reloadlab_hits (bpf/lib/hits.h); those of other sources do not.
    """
    met: dict[int, int] = {}
    for key, packets in now.hits.items():
        earlier = before.hits.get(key, 0)
        # A counter that went back had made room for others, and came again.
        met[key[0]] = met.get(key[0], 0) + (packets - earlier if packets >= earlier else packets)
    for generation, subject in sorted(replaced.items()):
        if met.get(generation, 0) > 0:
            met_it = f"{plural(met[generation], 'packet')} met generation {generation} of {subject}"
            yield Violation(4, f"{met_it}, which another has replaced")

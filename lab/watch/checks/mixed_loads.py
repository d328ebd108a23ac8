"""Invariant 4: a packet meets the programs of one load of an object."""

from __future__ import annotations

from collections.abc import Iterator

from lab.abi.layouts import HIT_MIXED_LOADS, Program
from lab.system.words import plural
from lab.watch.metrics import Counters
from lab.watch.violation import Violation


def check_mixed_loads(before: Counters, now: Counters) -> Iterator[Violation]:
    """Yield the programs that programs of another load have called since `before` (invariant 4).

    Our programs count such packets in reloadlab_hits (bpf/lib/hits.h); those of other sources do not.
    """
    for key, packets in sorted(now.hits.items()):
        generation, source, program = key
        met = packets - before.hits.get(key, 0)
        if program & HIT_MIXED_LOADS and met > 0:
            name = Program(program & ~HIT_MIXED_LOADS).name.lower()
            whose = f"endpoint {source}" if source else "host, overlay or XDP"
            yield Violation(
                4, f"{whose}: another load's program handed {plural(met, 'packet')} to {name} of load {generation}"
            )

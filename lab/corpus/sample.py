"""A sample of the corpus: a fixed number of faults, spread over kinds and plans, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lab.corpus.fault import Fault


def sample(faults: Sequence[Fault], size: int, *, seed: int = 0) -> list[Fault]:
    """Return `size` faults that must be caught, as evenly from all groups as they go, in the order of the corpus.

    A group is a kind and the first part of the names: the plan of a systematic fault. All are returned if there are
    fewer. What is drawn depends on the names and the seed only.
    """
    chance = random.Random(seed)
    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        if not fault.equivalent:
            plan, slash, _ = fault.name.partition("/")
            groups.setdefault((fault.kind, plan if slash else ""), []).append(fault)
    for group in groups.values():
        chance.shuffle(group)
    chosen: set[str] = set()
    while len(chosen) < size and any(groups.values()):
        for group in groups.values():
            if group and len(chosen) < size:
                chosen.add(group.pop().name)
    return [fault for fault in faults if fault.name in chosen]

"""A sample is the same for the same seed, and spreads over kinds and plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lab.corpus.fault import Fault
from lab.corpus.faults import all_faults
from lab.corpus.sample import sample


def names(faults: Iterable[Fault]) -> list[str]:
    return [fault.name for fault in faults]


def test_the_same_seed_draws_the_same() -> None:
    first, again, other = (names(sample(all_faults(), 40, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_it_spreads_over_kinds_and_plans() -> None:
    chosen = sample(all_faults(), 40)
    groups = Counter((fault.kind, fault.name.split("/")[0] if "/" in fault.name else "") for fault in chosen)
    assert len(chosen) == 40
    assert {kind for kind, _ in groups} == {"plan", "named", "c"}
    assert max(groups.values()) - min(groups.values()) <= 1


def test_what_is_without_effect_is_not_drawn() -> None:
    chosen = sample(all_faults(), 10_000)
    assert names(chosen) == names(fault for fault in all_faults() if not fault.equivalent)

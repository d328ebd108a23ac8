"""All faults, from the modules that list them."""

from __future__ import annotations

from collections import Counter

from lab.corpus import classic, loaders, named, systematic
from lab.corpus.fault import BadFault, Fault
from lab.corpus.mutants import MUTANTS


def all_faults() -> tuple[Fault, ...]:
    """Return every fault of the corpus, in the order in which they are listed; no two have the same name."""
    found = (*systematic.faults(), *classic.FAULTS, *loaders.FAULTS, *named.FAULTS, *MUTANTS)
    for name, times in Counter(fault.name for fault in found).items():
        if times > 1:
            raise BadFault(name, f"{times} faults have this name")
    return found

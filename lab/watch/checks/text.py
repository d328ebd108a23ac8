"""How findings name what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from lab.watch.network import Network
from lab.watch.networkdiff import differences


def difference(old: object, new: object) -> str:
    """Return what differs between two values; of mappings the first three entries."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [k for k in (*old, *(k for k in new if k not in old)) if old.get(k) != new.get(k)]
        found = (f"{key}: {difference(old.get(key), new.get(key))}" for key in keys[:3])
        return "; ".join(found) + (" ..." if len(keys) > 3 else "")
    if isinstance(old, Network) and isinstance(new, Network):
        return "; ".join(str(each) for each in islice(differences(old, new), 3))
    return f"{old} -> {new}"


def some(ids: Iterable[int]) -> str:
    """Return the first five of some ids."""
    return ", ".join(str(i) for i in sorted(ids)[:5])

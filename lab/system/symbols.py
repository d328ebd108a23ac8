"""Names for addresses in the kernel (/proc/kallsyms)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

_KALLSYMS = Path("/proc/kallsyms")


def places(addresses: Iterable[int], kallsyms: Path = _KALLSYMS) -> Mapping[int, str]:
    """Return `function+0x1f` for each address; the address in hex where the kernel tells no names.

    Reading the table takes a tenth of a second.
    """
    wanted = set(addresses)
    symbols = sorted(_symbols(kallsyms.read_text())) if wanted else []
    starts = [start for start, _ in symbols]
    found = {}
    for address in wanted:
        index = bisect_right(starts, address) - 1
        known = index >= 0 and starts[index] > 0
        found[address] = f"{symbols[index][1]}+{address - starts[index]:#x}" if known else f"{address:#x}"
    return found


@lru_cache(maxsize=8)
def extent(function: str, kallsyms: Path = _KALLSYMS) -> range:
    """Return the addresses of a function of the kernel; none if it has no such function, or tells no addresses."""
    table = kallsyms.read_text()
    # Most kernels have no such function; that is seen in half the time.
    symbols = sorted(_symbols(table)) if f" {function}" in table else []
    for (start, name), (following, _) in pairwise(symbols):
        if name == function:
            return range(start, following)
    return range(0)


def _symbols(table: str) -> Iterable[tuple[int, str]]:
    # Kernel addresses that the reader may not see are all zero.
    for line in table.splitlines():
        start, kind, name = line.split(maxsplit=2)
        if kind in "tTwW":
            yield int(start, 16), name.partition("\t")[0]

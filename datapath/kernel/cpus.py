"""The machine's CPUs, as the kernel numbers them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

POSSIBLE, ONLINE = Path("/sys/devices/system/cpu/possible"), Path("/sys/devices/system/cpu/online")


def cpu_list(path: Path) -> frozenset[int]:
    """Return the CPU numbers that a file such as `possible` lists ("0-3,8-11")."""
    found: set[int] = set()
    for part in path.read_text().strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


@cache
def possible_cpus(path: Path = POSSIBLE) -> int:
    """Return how many CPUs the kernel made room for: the number of values of a per-CPU map (num_possible_cpus)."""
    return len(cpu_list(path))


@cache
def cpu_ids(path: Path = POSSIBLE) -> int:
    """Return one more than the highest CPU number: the size of an array whose index is a CPU (nr_cpu_ids).

    More than `possible_cpus` where numbers are left out.
    """
    return max(cpu_list(path)) + 1

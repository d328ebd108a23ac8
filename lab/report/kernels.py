"""Several runs as one table: a column for each kernel, a row for each scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.scenario.records import NOT_RUN, RUNNING

_NO_END = frozenset(("", NOT_RUN, RUNNING))
"""What stands for an outcome where a scenario has none in a run."""


@dataclass(frozen=True, slots=True)
class ByKernel:
    """The table: `kernels` head the columns; a row has a scenario's name, and its outcome in each, empty if in none."""

    kernels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def differing(self) -> int:
        """How many scenarios came out differently; those are the first rows."""
        return sum(_differs(outcomes) for _, outcomes in self.rows)

    @property
    def unended(self) -> int:
        """How many others did not come to an end in some run; those are the next rows."""
        return sum(_is_unended(outcomes) and not _differs(outcomes) for _, outcomes in self.rows)


def by_kernel(runs: Sequence[tuple[str, str, Mapping[str, str]]]) -> ByKernel | None:
    """Return the table of runs, each with its file, its kernel and the outcomes by scenario.

    None if they are not of several kernels.
    """
    kernels = [kernel for _, kernel, _ in runs]
    if len(set(kernels)) < 2:
        return None
    heads = (f"{kernel} ({file})" if kernels.count(kernel) > 1 else kernel for file, kernel, _ in runs)
    names = dict.fromkeys(name for _, _, outcomes in runs for name in outcomes)
    rows = [(name, tuple(outcomes.get(name, "") for _, _, outcomes in runs)) for name in names]
    return ByKernel(tuple(heads), tuple(sorted(rows, key=lambda row: (not _differs(row[1]), not _is_unended(row[1])))))


def _differs(outcomes: Sequence[str]) -> bool:
    return len(set(outcomes) - _NO_END) > 1


def _is_unended(outcomes: Sequence[str]) -> bool:
    return not _NO_END.isdisjoint(outcomes)

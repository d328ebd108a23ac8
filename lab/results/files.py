"""Files that can be compared: results of `reloadlab bench --out`, and the run.json of `reloadlab run`."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

from lab.results.compare import Named
from lab.results.result import BadResult, Result, checked_result, read_document
from lab.results.run import Run, checked_run, is_run


def read_measured(path: Path) -> Result:
    """Return the result in a file, or the run as a result; BadResult unless it is a complete one of this version."""
    found = _read(path)
    return found.result(found.names, found.passed) if isinstance(found, Run) else found


def read_comparable(paths: Sequence[Path]) -> tuple[list[Named], str]:
    """Return the results of several files, and what of them is left out, as `comparable` does; BadResult."""
    return comparable([(str(path), _read(path)) for path in paths])


def comparable(files: Sequence[tuple[str, Result | Run]]) -> tuple[list[Named], str]:
    """Return results and runs, each with its name, as results that can be compared.

    Also returns what of them is left out, in words; empty if nothing is. Of runs, only the scenarios that all of them
    have are in the results, and times only of those that passed in all; of a metric, of those that have it in all.
    BadResult if runs have no scenario in common.
    """
    runs = [each for _, each in files if isinstance(each, Run)]
    names = frozenset[str]().union(*(run.names for run in runs))
    common = names.intersection(*(run.names for run in runs))
    passed = common.intersection(*(run.passed for run in runs))
    if names and not common:
        raise BadResult(f"{', '.join(name for name, _ in files)}: the runs have no scenario in common")
    measured: dict[str, Set[str]] = {}
    for run in runs:
        for metric, times in run.times(passed).items():
            measured[metric] = measured.get(metric, times.keys()) & times.keys()
    named = [
        Named(name, each.result(common, passed, measured) if isinstance(each, Run) else each) for name, each in files
    ]
    left_out = [f"{len(names - common)} scenarios that are not in all of the runs"] if names != common else []
    left_out += [f"the times of {len(common - passed)} that did not pass in all of them"] if common != passed else []
    return named, " and ".join(left_out)


def _read(path: Path) -> Result | Run:
    document = read_document(path)
    return checked_run(path, document) if is_run(document) else checked_result(path, document)

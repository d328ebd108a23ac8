"""What the results or runs of a page are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.report.documents import Document, of_kind
from lab.results.compare import Named
from lab.results.files import comparable
from lab.results.result import Result
from lab.results.run import Run, checked_run


@dataclass(frozen=True, slots=True)
class Baseline:
    """An old result or run, the new ones of the same kind, and what of runs is not compared, in words."""

    old: Named
    new: Sequence[Named]
    of_runs: bool
    left_out: str = ""


def can_be_compared(old: Document, documents: Sequence[Document]) -> bool:
    """Tell whether a document is a run or a result, and another of its kind is there."""
    return old.kind in ("run", "result") and bool(of_kind(documents, old.kind))


def baseline(old: Document, documents: Sequence[Document]) -> Baseline:
    """Return `old` as what those documents are compared with that are of its kind.

    BadResult for a run that is not complete, and where runs have no scenario in common.
    """
    new = of_kind(documents, old.kind)
    named, left_out = comparable([(each.name, _measured(each)) for each in (old, *new)])
    return Baseline(named[0], named[1:], old.kind == "run", left_out)


def _measured(document: Document) -> Result | Run:
    return document.result or checked_run(Path(document.name), document.content)

"""What a failed scenario prints: the suite's own lines and the error, not the way through our code to it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pluggy
import pytest
from _pytest._code.code import ExceptionRepr

import datapath
import lab
from datapath.errors import ReloadlabError

_PYTEST = Path(pytest.__file__).parents[1]
_HIDDEN = (
    *(Path(package.__file__).parent for package in (datapath, lab, pluggy) if package.__file__),
    *(_PYTEST / name for name in ("_pytest", "pytest", "xdist")),
    Path(contextlib.__file__),
)


def shortened(item: pytest.Item, error: pytest.ExceptionInfo[BaseException], longrepr: Any) -> Any:
    """Return what is printed of an error of ours: the lines of the suite that led to it and its message; no causes.

    Just the message if there are no such lines. Of what the suite itself raises, at a gate say, the lines of the suite
    are printed, and its causes. Everything else is printed as pytest does it (`longrepr`), as is everything with
    --full-trace: frames are evidence.
    """
    ours = isinstance(error.value, ReloadlabError)
    if item.config.getoption("fulltrace") or not (ours or _passed_through_us(error)):
        return longrepr
    if not _lines_of_the_suite(error):
        return str(error.value)
    style = item.config.getoption("tbstyle")
    return error.getrepr(
        style="long" if style == "auto" else style,
        showlocals=item.config.getoption("showlocals"),
        tbfilter=_lines_of_the_suite,
        chain=not ours,
    )


def with_notes(longrepr: Any, notes: Sequence[str]) -> Any:
    """Return what is printed of an error with these lines below it."""
    if not notes:
        return longrepr
    if isinstance(longrepr, ExceptionRepr):
        longrepr.addsection("reloadlab", "\n".join(notes))
        return longrepr
    return "\n".join([str(longrepr), *notes])


def _lines_of_the_suite(error: pytest.ExceptionInfo[BaseException]) -> Any:
    return error.traceback.filter(lambda entry: not _is_ours(entry))


def _passed_through_us(error: pytest.ExceptionInfo[BaseException]) -> bool:
    """Tell whether the suite raised it, in a function that we have called for it."""
    entries = list(error.traceback)
    first = next((number for number, entry in enumerate(entries) if not _is_ours(entry)), len(entries))
    return any(_is_ours(entry) for entry in entries[first:]) and not _is_ours(entries[-1])


def _is_ours(entry: Any) -> bool:
    path = Path(str(entry.path))
    # The plugin that the fixtures are in stands above us; <string> is what exec() made: a dataclass's methods.
    if str(entry.frame.f_globals.get("__name__", "")).startswith("reloadlab.") or path.name == "<string>":
        return True
    return any(path.is_relative_to(hidden) for hidden in _HIDDEN)

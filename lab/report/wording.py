"""One line that says why a scenario ended as it did, and text that any file format can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lab.scenario.records import NOT_RUN, RUNNING, SKIPPED

Document = Mapping[str, Any]

_UNFIT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]")
"""What XML forbids or advises against: control characters, surrogates and the like."""

_PYTEST_ERROR = re.compile(r"^E +(?=\S)", re.MULTILINE)
"""Begins the lines in which pytest says what is wrong."""


def visible(text: str) -> str:
    r"""Return text with control characters and surrogates spelled as Python does it: `\x1b`."""
    return _UNFIT.sub(lambda found: ascii(found[0])[1:-1], text)


def headline(scenario: Document) -> str:
    """Return why a scenario of run.json did not pass, in one line; empty if it did."""
    outcome, message = scenario["outcome"], scenario["message"].strip()
    if outcome == SKIPPED:
        return first_line(message.removeprefix("Skipped: "))
    if outcome == NOT_RUN:
        return f"not run: {first_line(message) or 'the run was stopped before it began'}"
    if outcome == RUNNING:
        return "the run ended while it ran"
    violations = scenario["violations"]
    if violations:
        return first_line(violations[0]) + (f" (and {len(violations) - 1} more)" if len(violations) > 1 else "")
    said = _PYTEST_ERROR.search(message)
    return first_line(message[said.end() :] if said else message)


def ended_by(run: Document) -> str:
    """Return what makes a run worthless as a whole, whatever its scenarios say; empty if nothing does."""
    if run["error"]:
        return f"the run did not come to its end: {run['error']}"
    outcomes = {scenario["outcome"] for scenario in run["scenarios"]}
    return "nothing was checked: all skipped" if outcomes == {SKIPPED} else ""


def first_line(text: str) -> str:
    """Return the first line of a text, without the space around it."""
    return text.partition("\n")[0].strip()

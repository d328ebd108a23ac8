"""progress.py: lines for a file, lines and a bar for a person."""

from __future__ import annotations

import io
import re

from rich.console import Console

from lab.cli.progress import ScenarioProgress, _clock
from lab.scenario.records import Record

PASSED = Record("a.py::test_one", "passed", 1.0)
FAILED = Record("a.py::test_two[x]", "failed", 2.0)
RUNNING = Record("a.py::test_three", "running")
LATER = tuple(Record(f"b.py::test_{number}") for number in range(97))
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def looked(*looks: tuple[Record, ...], terminal: bool) -> str:
    """Return what is written while records change: each look has the records that changed, of 100 in all."""
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal, color_system=None)
    known = {record.name: record for record in (PASSED, FAILED, RUNNING, *LATER)}
    known = {name: Record(name) for name in known}
    with ScenarioProgress(console) as progress:
        for changed in looks:
            known |= {record.name: record for record in changed}
            progress.look(changed, list(known.values()))
    return out.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_file_gets_a_line_for_each_scenario_that_ended_and_nothing_else() -> None:
    text = looked((PASSED, RUNNING), (PASSED, FAILED), terminal=False)
    assert text == "  ok   a: one (1.0 s)\n  FAIL a: two[x] (2.0 s)\n"


def test_a_person_sees_counts_failures_and_what_runs() -> None:
    text = plain(looked((PASSED, RUNNING), (FAILED,), terminal=True))
    assert "  1/100 0:00" in text
    assert "  2/100 1 failed" in text
    assert "  a: three" in text
    assert text.count("ok   a: one (1.0 s)\n") == 1


def test_the_time_left_is_told_when_some_have_ended() -> None:
    ended = tuple(Record(record.name, "passed") for record in LATER[:5])
    assert "left" not in looked(ended[:4], terminal=True)
    assert "about 0:00 left" in plain(looked(ended, terminal=True))


def test_the_bar_is_gone_at_the_end_and_the_cursor_is_back() -> None:
    text = looked((PASSED,), terminal=True)
    assert text.count(HIDE) == text.count(SHOW) == 1
    after = text[text.index(SHOW) :]
    # The line of the bar and that below it are erased.
    assert after.count("\x1b[2K") == 2
    assert plain(after).strip() == ""


def test_nothing_is_drawn_while_nothing_changes() -> None:
    once = looked((PASSED,), terminal=True)
    assert len(looked((PASSED,), *[()] * 50, terminal=True)) < len(once) * 3


def test_seconds_are_shown_as_on_a_clock() -> None:
    assert [_clock(seconds) for seconds in (5, 754, 3723)] == ["0:05", "12:34", "1:02:03"]

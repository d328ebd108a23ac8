"""summary.py: a summary that GitHub renders as it is meant, and takes."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from lab.report.summary import FINDINGS, LEAST, LIMIT, summary
from lab.scenario.records import Record
from tests.lab.report.runs import document, parallel
from tests.lab.report.test_junit import ALL, LOST


def rows(text: str) -> list[list[str]]:
    """Return the cells of every line of a table, as a reader sees them."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[shown(cell) for cell in line.strip("| ").split(" | ")] for line in lines]


def shown(cell: str) -> str:
    return re.sub(r"\\([!-/:-@[-`{-~])", r"\1", html.unescape(cell))


def test_what_failed_comes_first_with_its_findings() -> None:
    text = summary(document(ALL))
    assert text.startswith("## reloadlab: 1 passed, 1 failed, 1 error, 1 skipped, 2 not run, 1 running\n")
    told = rows(text)
    assert told[1] == ["1", "1", "1", "1", "2", "1", "120", "2", "12"]
    assert ["hitless: lost[x]", "failed", "1", "120", "2", "invariant 7: a -> b: 2 lost"] in told
    assert told[4][-1] == "invariant 6: dropped"
    assert ["a: error", "error", "0", "0", "0", "fixture 'x' not found"] in told
    assert text.index("What failed") < text.index("Not checked") < text.index("that did not fail")
    assert "- the kernel's log is not read (1 scenario)\n" in text
    assert "- skipped: no such kernel (1 scenario)\n" in text
    assert ["a: stopped", "not run: stopped while it ran", "0", "0", "0", "0.0"] in told


def test_parallel_reloads_and_their_problems_are_told() -> None:
    text = summary(document([ALL[0]], parallel("lost | one")))
    assert ["2", "52", "37.43", "49.86", "61.52"] in rows(text)
    assert "50 pods, 3 rounds; 900 packets of other pods sent, 0 lost\n" in text
    assert "- lost &#124; one\n" in text


def test_what_ended_the_run_is_told_with_its_whole_message() -> None:
    text = summary(document([], error="pytest ended with exit code 3:\n<INTERNALERROR>"))
    assert "**the run did not come to its end: pytest ended with exit code 3:**\n" in text
    assert "&lt;INTERNALERROR&gt;</pre>" in text


@pytest.mark.parametrize(
    "text", ["a|b", "`tick`", "two\nlines", "<b>&amp;", "*x* _y_ ~z~ [l](m) $n$ \\ #1", "\x1b[31m"]
)
def test_nothing_in_a_finding_is_markup(text: str) -> None:
    record = Record("a.py::test_b", "failed", violations=(text, "other"), message=f"{text}</pre>")
    told = summary(document([record]))
    (line,) = (line for line in told.splitlines() if line.startswith("| a: b | failed |"))
    # Every bar is one of the table.
    cells = re.split(r"(?<!\\)\|", line)
    assert len(cells) == 8
    found = cells[6].strip()
    assert shown(found) == text.replace("\x1b", "\\x1b").replace("\n", "<br>")
    assert not re.search(r"(?<!\\)[`*_\[\]~$#]", re.sub(r"&#\d+;", "", found))
    assert re.findall("<[^>]*>", found) == ["<br>"] * text.count("\n")
    (message,) = re.findall(r"<pre>(.*?)</pre>", told, re.DOTALL)
    assert html.unescape(message) == f"{text}</pre>".replace("\x1b", "\\x1b")


def test_names_in_titles_are_plain_html() -> None:
    """A title is HTML: there a backslash would be seen."""
    record = Record("a.py::test_b[x_y<i>]", "failed", message="no")
    assert "<details><summary>a: b[x y&lt;i&gt;]</summary>\n\n" in summary(document([record]))


def big() -> dict[str, Any]:
    failed = [Record(f"a.py::test_{n}", "failed", message="é" * 30_000, violations=("x" * 500,)) for n in range(60)]
    passed = [Record(f"b.py::test_{n}", "passed") for n in range(3_000)]
    return document([*failed, *passed], parallel())


@pytest.mark.parametrize("room", [LIMIT, 100_000, LEAST])
def test_a_summary_fits_and_tells_what_does_not(room: int) -> None:
    text = summary(big(), room)
    assert len(text.encode()) <= room
    assert text.count("<details>") == text.count("</details>")
    for thing, number, what in re.findall(r"^(\d+) of (\d+) (\w+) did not fit here", text, re.MULTILINE):
        assert int(thing) <= int(number)
        assert what in ("rows", "messages", "scenarios")
    left = dict(re.findall(r"^\d+ of (\d+) (\w+) did not fit here", text, re.MULTILINE))
    assert left["3000"] == "scenarios"
    assert "3000 passed" in text


def test_without_room_there_is_no_summary() -> None:
    assert summary(document(ALL), LEAST - 1) == ""


def test_of_many_findings_the_rest_are_counted() -> None:
    many = Record("a.py::test_b", "failed", violations=tuple(f"finding {number}" for number in range(FINDINGS + 3)))
    told = [row[-1] for row in rows(summary(document([many]))) if "finding" in row[-1] or "more" in row[-1]]
    assert told[-2:] == [f"finding {FINDINGS - 1}", "and 3 more"]


def test_what_passed_is_folded() -> None:
    text = summary(document([ALL[0], LOST]))
    folded = text.partition("<details><summary>1 that did not fail</summary>")[2]
    assert "a: passed" in folded
    assert "hitless" not in folded


def test_each_row_of_a_run_over_machines_says_where_it_ran() -> None:
    machines = [
        {"name": "ssh:a", "kernel": "6.1.0", "workers": 2, "lost": None},
        {"name": "ssh:b", "kernel": "6.12.9", "workers": 4, "lost": "it cannot be reached any more"},
    ]
    records = [
        Record("t.py::test_one", "passed", machine="ssh:a", kernel="6.1.0"),
        Record("t.py::test_two", "error", message="lost", machine="ssh:b", kernel="6.12.9"),
    ]
    text = summary(document(records) | {"machines": machines})
    told = shown(text)
    assert "ssh:a (kernel 6.1.0, 2 workers), ssh:b (kernel 6.12.9, 4 workers, lost: it cannot be reached any" in told
    assert [row[0] for row in rows(text) if row[0].startswith("t: ")] == [
        "t: two on ssh:b, kernel 6.12.9",
        "t: one on ssh:a, kernel 6.1.0",
    ]

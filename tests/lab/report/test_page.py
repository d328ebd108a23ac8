"""page.py: one file that loads nothing, in which what comes from files is text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lab.report import page as page_module
from lab.report.documents import Document, to_document
from lab.report.kernels import by_kernel
from lab.report.page import PageMaker
from lab.results.result import Series, to_json
from lab.scenario.records import Record
from lab.system.cache import CACHE_VARIABLE
from tests.lab.report.samples import losing, parallel, record, run
from tests.lab.report.test_trials import SWEEP
from tests.lab.results.samples import machine, result, times

HALF = "\ud800"
"""Half of a character: JSON can hold it, a file cannot."""

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


def document(content: dict[str, Any], name: str = "run.json") -> Document:
    return to_document(Path(name), content)


def page(*contents: dict[str, Any]) -> str:
    return PageMaker([document(content, f"{number}.json") for number, content in enumerate(contents)]).make()


def bench(**changes: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(to_json(result(Series("reload", "s", times(1)), **changes))))
    return dict(content)


def parts(text: str) -> dict[str, str]:
    """Return what the page has compressed, by its id."""
    found = re.findall(r'<script type="text/plain" id="([^"]+)">([^<]+)</script>', text)
    return {name: gzip.decompress(base64.b64decode(packed)).decode() for name, packed in found}


class Tags(HTMLParser):
    """Gathers tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_is_loaded_and_only_the_own_scripts_may_run() -> None:
    text = page(run(record(), losing(), measured=parallel()), bench())
    tags = Tags(text).tags
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = [re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[-1], parts(text)["library"]]
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert [attrs for _, attrs in tags if "src" in attrs] == []
    assert {attrs["href"] for tag, attrs in tags if tag == "link"} == {"data:,"}
    assert all(str(attrs["href"]).startswith("#") for tag, attrs in tags if tag == "a")


def test_what_comes_from_a_file_is_text() -> None:
    evil = record(EVIL, outcome="failed", message=EVIL, violations=(EVIL,), gaps=(EVIL,))
    finding = {"what": EVIL, "at_ns": [1]}
    evil = Record(**{name: getattr(evil, name) for name in evil.__slots__} | {"findings": (finding,)})
    case = {**SWEEP["failures"][0], "what": EVIL}  # type: ignore[index]
    text = page(run(evil), bench(notes={EVIL: EVIL}, bench=EVIL), {**SWEEP, "failures": [case]})
    opened = json.loads(parts(text)["s-1-0"])["html"]
    for written in (text, opened):
        assert "<script>alert" not in written
        assert "<img" not in written
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written


def test_a_run_that_was_cut_short_says_so() -> None:
    text = page(run(record(), complete=False))
    assert "This run did not reach its end." in text
    assert "What ended it: interrupted." in text
    assert "It was killed, or still goes on." in page(run(record()) | {"complete": False})
    assert "This run did not reach its end." not in page(run(record()))


def test_the_verdict_is_the_heading() -> None:
    def heading(*contents: dict[str, Any]) -> str:
        found = re.search(r"<h1[^>]*>(.*?)</h1>", page(*contents), re.DOTALL)
        assert found is not None
        return re.sub(r"<[^>]*>", "", found[1]).strip()

    assert heading(run(record())) == "✓ Nothing went wrong"
    assert heading(run(record(), losing())) == "✗ 1 of 2 scenarios failed"
    assert heading(run(record(), complete=False)) == "… Nothing was found, and not everything was checked"
    assert heading(run(record(outcome="skipped"))) == "… Nothing was found, and not everything was checked"
    assert heading(run(record("a"), record("b", outcome="not run"))) == "… 1 not run"
    assert heading(run()) == "… No scenario was run"
    assert heading(bench()) == "reloadlab report"
    assert heading(run(record(HALF))) == "✓ Nothing went wrong"


def test_what_was_not_checked_is_told_at_the_top() -> None:
    content = run(record("a", gaps=("too fast",)), record("b", gaps=("too fast", "no log")), record("c"))
    shown = page(content)
    assert "<summary>Not checked: 2 things</summary>" in shown
    assert "in 2 scenarios: too fast" in shown
    assert "in 1 scenario: no log" in shown
    assert "Not checked" not in page(run(record("a")))


def test_files_of_two_kernels_are_told() -> None:
    mine = machine().kernel
    same = run(record()) | {"machine": {"kernel": mine, "cpus": 2}}
    other = run(record()) | {"machine": {"kernel": "5.10.0", "cpus": 2}}
    assert "different kernels" not in page(same, bench())
    text = page(other, bench())
    assert "These files are of different kernels." in text
    assert "0.json: 5.10.0" in text


def test_runs_on_several_kernels_have_a_table_with_a_column_for_each() -> None:
    first = run(record("a"), record("b")) | {"machine": {"kernel": "6.1.0", "cpus": 2}}
    second = run(record("b", outcome="skipped"), record("c")) | {"machine": {"kernel": "6.12.0", "cpus": 2}}
    text = page(first, second)
    said = (
        "1 scenario of 3 came out differently on these kernels, 2 others did not end on all of them; they are the first"
    )
    assert said in text
    assert '<th scope="col">6.1.0</th><th scope="col">6.12.0</th>' in text
    again = page(first, first)
    assert "came out differently" not in again
    table = by_kernel(
        [("x", "1", {"a": "passed"}), ("y", "1", {"a": "passed", "b": "failed"}), ("z", "2", {"a": "passed"})]
    )
    assert table is not None
    assert table.kernels == ("1 (x)", "1 (y)", "2")
    assert table.rows == (("b", ("", "failed", "")), ("a", ("passed", "passed", "passed")))
    assert (table.differing, table.unended) == (0, 1)


def test_headings_form_an_outline_and_tables_have_scopes() -> None:
    text = page(run(losing(), record(), measured=parallel()), bench(), SWEEP)
    opened = json.loads(parts(text)["s-1-0"])["html"]
    tags = Tags(text + opened).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in tags if attrs.get("role") == "img")
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(attrs["href"])[1:] for tag, attrs in tags if tag == "a"} <= {*ids, "s-1-0"}


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_level_aa(scheme: str) -> None:
    style = (Path(page_module.__file__).parent / "page" / "page.css").read_text()
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part)) for part in re.split(r"@media", style)[:2])
    colours = light if scheme == "light" else dark
    grounds = {
        "--paper": ("--ink", "--muted", "--link", "--good", "--bad", "--open"),
        "--soft": ("--ink", "--muted"),
        "--open-soft": ("--ink",),
    }
    for ground, texts in grounds.items():
        for text in texts:
            low, high = sorted((luminance(colours[ground]), luminance(colours[text])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, text)
    # What is drawn, where it is no text.
    for drawn in ("--s0", "--s1", "--s2", "--s4", "--s5", "--idle"):
        low, high = sorted((luminance(colours["--paper"]), luminance(colours[drawn])))
        assert (high + 0.05) / (low + 0.05) >= 3, drawn


def test_a_page_without_figures_carries_no_library() -> None:
    assert "library" not in parts(page(SWEEP))


def test_a_run_over_machines_names_them_and_what_each_ran() -> None:
    told = {"name": "ssh:a", "kernel": "6.1.0", "workers": 2, "lost": "it is gone"}
    content = run(replace(record(), machine="ssh:a", kernel="6.1.0")) | {"machines": [told]}
    text = page(content)
    assert "kernel 6.1.0, 2 at a time, lost: it is gone" in text
    assert "<small>ssh:a, 6.1.0</small>" in text
    assert "<small>ssh:a" not in page(run(record()))


def test_what_is_the_same_on_all_pages_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly, packed, and Jinja's templates, compiled: from another process the page comes sooner."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kept"))
    page_module._library.cache_clear()
    first = page(run(record("one")))

    def again(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("plotly.offline.get_plotlyjs", again)
    monkeypatch.setattr("jinja2.environment.Environment._parse", again)
    page_module._library.cache_clear()
    assert page(run(record("one"))) == first


@pytest.mark.parametrize("directory", ["nothing is kept", "others may write"])
def test_a_page_is_made_where_nothing_can_be_kept(
    directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = page(run(record("one")))
    tmp_path.chmod(0o777)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path) if directory == "others may write" else "")
    page_module._library.cache_clear()
    assert page(run(record("one"))) == expected
    assert list(tmp_path.iterdir()) == []

"""`reloadlab report`: writes the page whole or not at all, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from lab.cli.main import main
from lab.report.trace import trace
from lab.results.result import Series, to_text
from tests.lab.report.samples import MS, outcome, record, run
from tests.lab.results.samples import result, times


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run(record())))
    return path


def test_the_page_is_written_and_its_path_printed(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = written.parent / "made" / "page.html"
    assert main(["report", str(written), "-o", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "Nothing went wrong" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o644 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_results_are_compared(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("old.json", "new.json")]
    for seed, path in enumerate(paths):
        path.write_text(to_text(result(Series("reload", "s", times(seed, middle=0.02 + seed / 500)))))
    old, new = map(str, paths)
    assert main(["report", new, "--compare", old, "-o", str(tmp_path / "page.html")]) == 0
    assert "<strong>1 worse</strong>" in (tmp_path / "page.html").read_text()


def test_runs_are_compared_scenario_by_scenario(tmp_path: Path) -> None:
    old, new, page = (str(tmp_path / name) for name in ("old.json", "new.json", "page.html"))
    scenarios = [record(f"test_a.py::test_{number}") for number in range(7)]
    Path(old).write_text(json.dumps(run(*scenarios, record("test_a.py::test_gone"))))
    slower = [replace(each, reloads=({"node": 1, **outcome(step=2 * MS).to_json()},)) for each in scenarios]
    Path(new).write_text(json.dumps(run(*slower)))
    assert main(["report", new, "--compare", old, "-o", page]) == 0
    text = Path(page).read_text()
    assert f"{old} → {new}" in text
    assert "Not compared: 1 scenarios that are not in all of the runs." in text
    assert re.search(r"<tr><t[hd][^>]*>reload: pod</t[hd]>.*\+100.0%", text)
    # The scenarios are those of the new run.
    assert "test_gone" not in text


def test_a_trace_of_the_run_is_written_beside_the_page(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, traced = written.parent / "page.html", written.parent / "made" / "trace.json"
    assert main(["report", str(written), "-o", str(page), "--trace", str(traced)]) == 0
    assert capsys.readouterr().out == f"{page}\n{traced}\n"
    assert json.loads(traced.read_text()) == trace(json.loads(written.read_text()))


def test_a_link_is_replaced_and_not_followed(written: Path) -> None:
    target, link = written.parent / "target", written.parent / "page.html"
    target.write_text("mine")
    link.symlink_to(target)
    assert main(["report", str(written), "-o", str(link)]) == 0
    assert target.read_text() == "mine"
    assert not link.is_symlink()
    assert "Nothing went wrong" in link.read_text()


def test_a_directory_that_is_a_link_is_refused(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = written.parent / "link"
    link.symlink_to(written.parent)
    assert main(["report", str(written), "-o", str(link / "page.html")]) == 1
    assert capsys.readouterr().err == f"reloadlab: {link} is a symbolic link: name the directory that it leads to\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.json"], "{0}/no.json: No such file or directory"),
        (
            ["run.json", "--compare", "bench.json"],
            "--compare {0}/bench.json: it takes an old run.json or result of `bench --out`, with a new one among the "
            "files",
        ),
        (
            ["run.json", "--compare", "killed.json"],
            "{0}/killed.json is of a run that did not come to its end: run it again",
        ),
        (["run.json", "run.json", "--trace", "t"], "--trace is of one run: among the files are 2"),
        (["run.json", "-o", "/proc/page.html"], "/proc/page.html: No such file or directory"),
        (["run.json", "-o", "run.json"], "-o {0}/run.json: it is one of the files to read"),
        (
            ["run.json", "--compare", "bench.json", "-o", "bench.json"],
            "-o {0}/bench.json: it is one of the files to read",
        ),
        (["run.json", "--trace", "run.json"], "--trace {0}/run.json: it is one of the files to read"),
        (["run.json", "--trace", "report.html"], "--trace report.html: that is the page"),
        (["run.json", "-o", "."], "argument -o/--output: '.' names no file; see: reloadlab report --help"),
        (
            ["cut.json"],
            "{0}/cut.json holds no result: not JSON (Unterminated string starting at: line 1 column 9 (char 8))",
        ),
    ],
    ids=[
        "missing",
        "compare",
        "compare killed",
        "two traces",
        "unwritable",
        "over a run",
        "over a base",
        "trace over a run",
        "trace over the page",
        "no name",
        "truncated",
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], said: str, written: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = written.parent
    (place / "cut.json").write_text('{"for": "run')
    (place / "bench.json").write_text(to_text(result(Series("reload", "s", times(1)))))
    (place / "killed.json").write_text(json.dumps(run(record(), complete=False)))
    argv = [str(place / word) if word.endswith(".json") else word for word in arguments]
    monkeypatch.chdir(place)
    assert main(["report", *argv]) != 0
    assert capsys.readouterr().err == f"reloadlab: {said.format(place)}\n"
    assert sorted(path.name for path in place.iterdir()) == [
        *("bench.json", "cut.json", "killed.json", "run.json"),
    ]

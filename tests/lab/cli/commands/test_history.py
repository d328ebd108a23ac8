"""`reloadlab history`: exit codes, and one line for what cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lab.cli.main import main
from lab.results.result import Result, Series, exact, to_text
from tests.lab.results.samples import NEEDS_RUPTURES, result, times
from tests.lab.results.test_history import commit, filled, measured

pytestmark = NEEDS_RUPTURES


def history(directory: Path, *, slower: float, commits: int = 14) -> str:
    """Make a history whose reloads become slower in the middle, and whose size stays."""
    for number in range(commits):
        middle = 0.02 * (1 + slower * (number >= commits // 2))
        filled(directory, [measured(number, Series("reload", "s", times(number, middle=middle)), exact("n", "n", 7))])
    return str(directory)


def written(path: Path, made: Result) -> str:
    path.write_text(to_text(made))
    return str(path)


@pytest.mark.parametrize(("slower", "code"), [(0.05, 1), (-0.05, 0), (0.0, 0)], ids=["slower", "faster", "same"])
def test_check_fails_where_something_became_worse(
    slower: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = history(tmp_path, slower=slower)
    assert main(["history", "check", path]) == code
    out, err = capsys.readouterr()
    assert err == ""
    assert ("060606060606  070707070707  worse" in out) == (slower > 0)
    assert ("060606060606  070707070707  better" in out) == (slower < 0)
    assert main(["history", "check", path, "--threshold", "20"]) == 0
    assert main(["history", "check", path, "--last", "3"]) == 0
    capsys.readouterr()
    assert main(["history", "check", path, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code


def test_too_few_commits_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, [measured(number, Series("reload", "s", times(number))) for number in range(3)])
    assert main(["history", "check", str(tmp_path)]) == 3
    said = f"reloadlab: {tmp_path}: nothing can be said: reload: reload: 3 of the 11 commits that are needed\n"
    assert capsys.readouterr().err == said


def test_what_is_exact_does_not_speak_for_the_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "check", history(tmp_path, slower=0.0, commits=5)]) == 3
    out, err = capsys.readouterr()
    assert "1 of 2 metrics looked at: no step" in out
    assert err == f"reloadlab: {tmp_path}: nothing can be said: reload: reload: 5 of the 11 commits that are needed\n"


def test_last_is_green_again_when_another_machine_goes_on(tmp_path: Path) -> None:
    path = history(tmp_path, slower=0.05)
    assert main(["history", "check", path, "--last", "10"]) == 1
    filled(tmp_path, [measured(number, options={"pods": "9"}) for number in range(14, 26)])
    assert main(["history", "check", path, "--last", "10"]) == 0


def test_add_says_where_the_result_is_and_why_a_series_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = written(tmp_path / "1.json", measured(1))
    assert main(["history", "add", str(tmp_path / "h"), one]) == 0
    first = capsys.readouterr().out.rstrip("\n")
    assert Path(first).parent == tmp_path / "h"
    assert json.loads(Path(first).read_text()) == json.loads(Path(one).read_text())
    other = written(tmp_path / "2.json", measured(2, options={"pods": "3"}))
    assert main(["history", "add", str(tmp_path / "h"), other]) == 0
    _name, why = capsys.readouterr().out.splitlines()
    assert why == "begins a series of its own, as it differs from the last result: option pods: 2, 3"


def test_a_side_of_two_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = [Series("reload", "s", times(1), side=side, group="rounds") for side in "AB"]
    path = written(tmp_path / "ab.json", result(*series, sides=("A", "B"), bench="ab"))
    add = ["history", "add", str(tmp_path / "h"), path]
    assert main(add) == 2
    assert capsys.readouterr().err == f"reloadlab: --side: {path} has the sides A, B: name one\n"
    assert main([*add, "--side", "B"]) == 1
    assert capsys.readouterr().err == "reloadlab: the result names no commit: name it with --commit\n"
    assert not (tmp_path / "h").exists()
    assert main([*add, "--side", "B", "--commit", commit(7), "--time", "2026-03-01T00:00:00+02:00"]) == 0
    assert Path(capsys.readouterr().out.split()[0]).name.startswith("20260228T220000Z-070707070707-")


@pytest.mark.parametrize("action", ["show", "check"])
def test_a_directory_that_is_no_history_is_one_line(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = 3 if action == "check" else 1
    assert main(["history", action, str(tmp_path / "none")]) == code
    assert capsys.readouterr() == ("", f"reloadlab: {tmp_path}/none: No such file or directory\n")
    assert main(["history", action, str(tmp_path)]) == code
    assert capsys.readouterr().err.startswith(f"reloadlab: {tmp_path} holds no results: ")
    (name,) = filled(tmp_path, [measured(1)])
    (tmp_path / name).write_text(to_text(replace(measured(1), format=99)))
    assert main(["history", action, str(tmp_path)]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"reloadlab: {tmp_path / name} has format 99")


def test_a_time_that_no_file_can_have_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("yesterday", "0001-01-01T00:00:00+14:00"):
        assert main(["history", "add", str(tmp_path), "x.json", "--time", text]) == 2
        assert f"'{text}' is not a time such as 2026-01-31T12:00:00+00:00; see" in capsys.readouterr().err


def test_a_threshold_without_a_drawing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "show", str(tmp_path), "--threshold", "3%"]) == 2
    assert "--threshold is for the steps that -o draws" in capsys.readouterr().err


def test_show_has_a_line_per_metric_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = history(tmp_path / "h", slower=0.05)
    assert main(["history", "show", path, "-o", str(tmp_path / "plot.svg")]) == 0
    title, _head, reload, size, *_ = capsys.readouterr().out.splitlines()
    assert "14 commits, 000000000000 to 0d0d0d0d0d0d" in title
    assert reload.split()[:2] == ["reload", "14"]
    assert size.split()[-1] == "▅" * 14
    assert (tmp_path / "plot.svg").read_text().startswith("<svg ")
    (tmp_path / "file").write_text("")
    assert main(["history", "show", path, "-o", str(tmp_path / "file" / "x.svg")]) == 1
    assert capsys.readouterr().err == f"reloadlab: {tmp_path}/file: Not a directory\n"

"""`reloadlab compare` and `bench export`: exit codes, and one line for what cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lab.cli.main import main
from lab.report.markdown import escaped
from lab.results.result import Course, Result, Series, exact, to_text
from tests.lab.results.samples import machine, result, times

SAME = result(Series("reload", "s", times(1)), exact("size", "bytes", 7000))
AGAIN = result(Series("reload", "s", times(2)), exact("size", "bytes", 7000))
SLOWER = result(Series("reload", "s", times(3, middle=0.022)), exact("size", "bytes", 7000))
OTHER_KERNEL = replace(AGAIN, machine=replace(machine(), kernel="5.10.0"))
FEW = result(Series("reload", "s", times(1, rounds=3)))
KILLED = replace(SAME, complete=False)
EMPTY = replace(SAME, series=(Series("reload", "s", ()),))
SIDES = result(
    *(Series("reload", "s", times(number), side=side, group="g") for number, side in enumerate("AB")),
    sides=("A", "B"),
    bench="ab",
    course=Course(rounds=30),
)
NOISY = replace(
    SIDES,
    series=(
        *(Series("reload", "s", times(number, noise=0.3), side=side, group="g") for number, side in enumerate("AB", 1)),
        *(replace(series, name="step: commit") for series in SIDES.series),
    ),
)
"""Of the reload nothing can be said; a step is the same."""


def written(directory: Path, *results: Result) -> list[str]:
    paths = []
    for number, each in enumerate(results):
        path = directory / f"{number}.json"
        path.write_text(to_text(each))
        paths.append(str(path))
    return paths


@pytest.mark.parametrize(
    ("results", "code", "said"),
    [
        ((SAME, AGAIN), 0, ""),
        ((SAME, SLOWER), 1, ""),
        ((SLOWER, SAME), 0, ""),
        ((SAME, AGAIN, SLOWER), 1, ""),
        ((SIDES,), 0, ""),
        ((SAME, OTHER_KERNEL), 3, "{0}, {1}: not comparable: kernel: "),
        ((FEW, FEW), 3, "{0}, {1}: not comparable: reload: 3 of the 6 rounds that are needed\n"),
        ((NOISY,), 3, "A, B: not comparable: reload: noise: ±"),
        ((SAME,), 3, "{0}: not comparable: it has no second side: name another result\n"),
        ((SAME, KILLED), 3, "{1} is of a measurement that was cut short: measure again\n"),
        ((EMPTY, SAME), 3, "{0} holds no value: measure again\n"),
    ],
    ids=[
        "same",
        "slower",
        "faster",
        "one of three",
        "sides",
        "kernels",
        "few",
        "noise",
        "one",
        "killed",
        "zero rounds",
    ],
)
@pytest.mark.parametrize("form", ["table", "--json", "--markdown"])
def test_exit_code_and_reason(
    results: tuple[Result, ...],
    code: int,
    said: str,
    form: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = written(tmp_path, *results)
    assert main(["compare", *paths, *([] if form == "table" else [form])]) == code
    out, err = capsys.readouterr()
    assert err.startswith(f"reloadlab: {said.format(*paths)}" if said else "")
    assert err.count("\n") == (1 if said else 0)
    if form == "--json" and out:
        assert json.loads(out)["exit_code"] == code


def test_threshold_decides_what_counts(tmp_path: Path) -> None:
    paths = written(tmp_path, SAME, SLOWER)
    assert [main(["compare", *paths, "--threshold", each]) for each in ("5%", "20")] == [1, 0]


def test_table_and_markdown_say_by_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = written(tmp_path, SAME, SLOWER)
    main(["compare", *paths])
    title, _head, row, counts, exact_ones, *_ = capsys.readouterr().out.splitlines()
    assert title == f"{paths[0]} -> {paths[1]}"
    cells = row.split()
    assert (cells[0], cells[2], cells[-1]) == ("reload", "ms", "worse")
    assert "+10." in row or "+9." in row
    assert (counts, exact_ones) == ("1 worse, 1 same", "1 of 1 exact metric unchanged")
    main(["compare", *paths, "--markdown"])
    out = capsys.readouterr().out
    assert out.count("| reload |") == 2, "what changed, and the whole table"
    assert "<details><summary>2 metrics</summary>" in out


def test_table_and_markdown_say_what_was_compared_where_and_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subjects = {
        "A": {"library": "our sources", "commit": "ab" * 20, "attach": "tc", "reloadlab commit": "ab" * 20},
        "B": {"library": "/src/bpf", "library sha256": "c" * 64, "attach": "tc", "reloadlab commit": "ab" * 20},
    }
    course, notes = Course(rounds=30, warm_up=2, seed=7), {"A": "own", "B": "library=/src/bpf"}
    (path,) = written(tmp_path, replace(SIDES, subjects=subjects, course=course, notes=notes))
    ours = machine()
    lines = [
        "A: library our sources, commit abababababab, attach tc (own)",
        f"B: library /src/bpf, attach tc, library sha256 {'c' * 12}, reloadlab commit abababababab (library=/src/bpf)",
        f"{ours.cpu_model}, {ours.cpus} CPUs, kernel {ours.kernel}, clang {ours.clang}",
        "30 rounds after 2 of warm-up; seed 7; other processes had 1% of the CPUs; "
        "reloadlab 0.1.0, 2026-01-01T00:00:00+00:00",
    ]
    main(["compare", path])
    assert capsys.readouterr().out.splitlines()[-5:-1] == lines
    main(["compare", path, "--markdown"])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("- ")] == [f"- {escaped(line)}" for line in lines]
    main(["compare", path, "--json"])
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["about"] == lines


def test_markdown_lets_nothing_through_as_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = written(tmp_path, *(result(Series("a|b <i>*x*", "s", times(n))) for n in (1, 2)))
    main(["compare", *paths, "--markdown"])
    assert r"| a&#124;b &lt;i&gt;\*x\* |" in capsys.readouterr().out


def test_export_of_a_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = written(tmp_path, SIDES)
    assert main(["bench", "export", "pyperf", path]) == 2
    assert capsys.readouterr().err == f"reloadlab: --side: {path} has the sides A, B: name one\n"
    assert main(["bench", "export", "pyperf", path, "--side", "B"]) == 0
    (benchmark,) = json.loads(capsys.readouterr().out)["benchmarks"]
    assert benchmark["runs"][0]["values"] == [times(1)[0]]
    assert main(["bench", "export", "jsonl", path]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 60
    assert main(["bench", "export", "jsonl", path, "--side", "A"]) == 2
    (killed,) = written(tmp_path, KILLED)
    capsys.readouterr()
    assert main(["bench", "export", "jsonl", killed]) == 1
    assert capsys.readouterr().err == f"reloadlab: {killed} is of a measurement that was cut short: measure again\n"


@pytest.mark.privileged
def test_a_directory_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bench", "gates", "--out", str(tmp_path / "file/x.json")]) == 1
    assert capsys.readouterr() == ("", f"reloadlab: {tmp_path}/file: Not a directory\n")

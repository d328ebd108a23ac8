"""Runs as results: what of them is compared, and what is refused."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.cli.main import main
from lab.results.compare import Verdict, compare
from lab.results.files import read_comparable, read_measured
from lab.results.result import BadResult, Series, to_text
from lab.results.run import RUN_FORMAT, RunFacts
from tests.lab.results.samples import result, times

SCENARIOS = 10


def run_document(seed: int, *, slower: float = 1.0, scenarios: int = SCENARIOS) -> dict[str, Any]:
    """Return what of a run.json counts here: every scenario takes its own time, in every run the same but for 1 %."""
    noise = random.Random(seed)
    rounds = [{"reloads_per_second": rate} for rate in (40.0, 41.0, 42.0)]
    names = [f"test_a.py::test_{number:02}" for number in range(scenarios)]
    return {
        "format": RUN_FORMAT,
        "complete": True,
        **json.loads(json.dumps(RunFacts.now({"commit": "c"}).to_json())),
        "seconds": 9.0,
        "scenarios": [
            {
                "name": name,
                "outcome": "passed",
                "lost": 0,
                "traffic": [
                    {"flows": [{"delays": {"count": 5, "worst_ns": round(2e6 * noise.lognormvariate(0, 0.5))}}]}
                ],
            }
            for name in names
        ],
        "reloads": [
            {
                "scenario": name,
                "subject": subject,
                "duration_ns": 10**9,
                "spans": [
                    {"step": "compile", "duration_ns": round(1e6 * (number + 1) * noise.lognormvariate(0, 0.01))},
                    {
                        "step": "commit",
                        "duration_ns": round(slower * 5e6 * (number + 1) * noise.lognormvariate(0, 0.01)),
                    },
                ],
            }
            for number, name in enumerate(names)
            for subject in ("pod-1", "mine", "host")
        ],
        "parallel": {"pods": 5, "lost": 0, "workers": [{"workers": 2, "rounds": rounds}]},
    }


def written(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_a_run_is_a_result_with_a_value_per_scenario(tmp_path: Path) -> None:
    found = read_measured(written(tmp_path / "run.json", run_document(1)))
    series = found.of_side("")
    assert {name: len(each.values) for name, each in series.items()} == {
        **dict.fromkeys(("reload: pod", "reload: host", "step: compile", "step: commit", "worst delay"), SCENARIOS),
        "parallel, 5 pods: workers 2": 3,
        **dict.fromkeys(("parallel, 5 pods: packets lost", "scenarios that failed", "packets lost"), 1),
    }
    # What a scenario stops it for does not count.
    assert all(value < 0.1 for value in series["reload: pod"].values)
    assert found.subjects == {"": {"commit": "c"}}


@pytest.mark.parametrize(("slower", "worse"), [(1.0, set()), (1.05, {"reload: pod", "reload: host", "step: commit"})])
def test_runs_are_compared_scenario_by_scenario(slower: float, worse: set[str], tmp_path: Path) -> None:
    """Between scenarios times differ tenfold: without pairs, 5 % would not be seen."""
    paths = [
        written(tmp_path / "old.json", run_document(1)),
        written(tmp_path / "new.json", run_document(2, slower=slower)),
    ]
    named, left_out = read_comparable(paths)
    (found,) = compare(named, 0.02)
    assert left_out == ""
    assert {row.name for row in found.regressions} == worse
    assert all(row.difference.paired for row in found.rows if row.difference and row.rounds[0] == SCENARIOS)
    (rates,) = [row for row in found.rows if "workers" in row.name]
    assert (rates.verdict, rates.why) == (Verdict.UNKNOWN, "3 of the 6 rounds that are needed")
    assert main(["compare", *map(str, paths)]) == (1 if worse else 0)


def test_only_scenarios_of_both_are_compared_and_the_rest_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = run_document(1, scenarios=SCENARIOS + 2), run_document(2)
    new["scenarios"][0] |= {"outcome": "failed", "lost": 3}
    paths = [written(tmp_path / "old.json", old), written(tmp_path / "new.json", new)]
    named, left_out = read_comparable(paths)
    assert left_out == "2 scenarios that are not in all of the runs and the times of 1 that did not pass in all of them"
    (found,) = compare(named, 0.02)
    assert {row.name for row in found.regressions} == {"scenarios that failed", "packets lost"}
    assert {row.rounds for row in found.rows if row.name.startswith("step")} == {(SCENARIOS - 1, SCENARIOS - 1)}
    assert main(["compare", *map(str, paths)]) == 1
    assert capsys.readouterr().err == f"reloadlab: not compared: {left_out}\n"
    # Who reads the summary of a job does not see that.
    assert main(["compare", *map(str, paths), "--markdown"]) == 1
    assert f"Not compared: {left_out}\n" in capsys.readouterr().out


def test_a_step_that_a_scenario_has_in_one_run_only_is_compared_over_the_others(tmp_path: Path) -> None:
    """The most expensive of them has it: among the others it would pass for a slow-down, and pairs there were none."""
    old, new = run_document(1), run_document(2, slower=1.05)
    last = old["scenarios"][-1]["name"]
    for reload in old["reloads"]:
        if reload["scenario"] == last:
            del reload["spans"][1]
    named, left_out = read_comparable([written(tmp_path / f"{n}.json", run) for n, run in enumerate((old, new))])
    (found,) = compare(named, 0.02)
    (commit,) = [row for row in found.rows if row.name == "step: commit"]
    assert commit.rounds == (SCENARIOS - 1, SCENARIOS - 1)
    assert commit.difference is not None
    assert commit.difference.paired
    assert (commit.verdict, left_out) == (Verdict.WORSE, "")


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = copy.deepcopy(run_document(1))
    change(document)
    return document


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (changed(lambda run: run.update(format=3)), "has format 3, this version reads 4: run it again"),
        (changed(lambda run: run.update(complete=False)), "is of a run that did not come to its end: run it again"),
        (changed(lambda run: run.pop("parallel")), "holds no run: KeyError: 'parallel'"),
        (changed(lambda run: run["reloads"][0].update(spans=7)), "holds no run: TypeError: "),
        (changed(lambda run: run.update(machine={})), "holds no run: no facts.machine.architecture"),
        (changed(lambda run: run.update(machines=None)), "holds no run: machines is not a list"),
        (changed(lambda run: run.update(scenarios=[])), "is of a run in which no scenario passed: "),
    ],
    ids=["old", "killed", "no parallel", "no spans", "no machine", "no machines", "empty"],
)
def test_a_run_that_cannot_be_compared_is_one_line(
    document: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = written(tmp_path / "good.json", run_document(2)), written(tmp_path / "bad.json", document)
    assert main(["compare", str(good), str(bad)]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"reloadlab: {bad} {said}")


def test_what_has_nothing_in_common_with_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "run.json", run_document(1))
    other = changed(lambda run: [each.update(name=f"x{each['name']}") for each in run["scenarios"]])
    with pytest.raises(BadResult, match="the runs have no scenario in common"):
        read_comparable([run, written(tmp_path / "other.json", other)])
    bench = tmp_path / "bench.json"
    bench.write_text(to_text(result(Series("reload", "s", times(1)))))
    assert main(["compare", str(run), str(bench)]) == 3
    assert "not comparable: benchmark: run, reload" in capsys.readouterr().err
    kernel = changed(lambda run: run["machine"].update(kernel="5.10.0"))
    assert main(["compare", str(run), str(written(tmp_path / "kernel.json", kernel))]) == 3
    assert "not comparable: kernel: " in capsys.readouterr().err


def test_a_run_can_be_exported_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "run.json", run_document(1))
    assert main(["bench", "export", "bencher", str(run)]) == 0
    assert "reload: pod" in json.loads(capsys.readouterr().out)
    assert main(["history", "add", str(tmp_path / "h"), str(run)]) == 0
    kept = Path(capsys.readouterr().out.strip())
    assert read_measured(kept) == read_measured(run)

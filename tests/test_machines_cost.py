"""What many machines cost: the table of docs/machines.md is what its formula makes; and the simulation."""

from __future__ import annotations

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lab.scenario.records import Record
from tests.rundocument import run_document

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "machines.md").read_text()
(FORMULA,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
BOOT, EMULATED = 50, 14


def test_the_table_of_costs_is_what_the_formula_makes() -> None:
    known: dict[str, Any] = {}
    exec(FORMULA, known)
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE
    )
    assert len(rows) == 9
    wrong = []
    for *counts, how, minutes, hours in rows:
        scenarios, kernels, machines, cpus = map(int, counts)
        options = {"kernels": kernels, "slowness": EMULATED if how == "emulated" else 1, "boot": BOOT}
        made = f"{known['seconds'](scenarios, machines, cpus, **options) / 60:.1f}"
        cost = f"{known['core_hours'](scenarios, machines, cpus, **options):.1f}"
        if (made, cost) != (minutes, hours):
            wrong.append(f"{counts} {how}: {made} {cost}, not {minutes} {hours}")
    assert wrong == []
    best = math.sqrt(254 * known["CORE_SECONDS"] / known["START"])
    assert f"{best:.0f} for those 254" in TEXT


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 16, 40])
def test_the_simulation_runs_each_scenario_once_and_wastes_little(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bounds are those of any spreading: not faster than the work, and at most the longest of it later."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    known = runpy.run_path(str(ROOT / "tools" / "machines.py"))
    random = Random(workers)
    seconds = [random.expovariate(0.5) for _ in range(120)]
    simulation = known["Simulation"](seconds, workers)
    took = simulation.run() - known["START"] * workers
    assert sorted(simulation.finished) == list(range(len(seconds)))
    least = max(sum(seconds) / workers, max(seconds))
    assert least <= took + 1e-6
    # A worker holds one item besides the one it runs, which nobody can steal.
    assert took <= sum(seconds) / workers + 2 * max(seconds)
    assert workers > 1 or took == pytest.approx(sum(seconds))


def test_the_simulation_prints_a_line_for_each_number_of_workers(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(run_document(Record(f"test_{n}", "passed", seconds=30.0) for n in range(8)))
    argv = [
        sys.executable,
        str(ROOT / "tools" / "machines.py"),
        str(tmp_path / "run.json"),
        "1",
        "4",
        "--slowness",
        "2",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    told, _, *rows = done.stdout.splitlines()
    assert told == f"calculated from {tmp_path}/run.json: 8 scenarios, 480 s, the longest 60 s"
    # 1.5 + 480 and 4 * 1.5 + 120 seconds, and 15 around them.
    assert [row.split()[:2] for row in rows] == [["1", "8.3"], ["4", "2.4"]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("{", "not JSON"), ("[]", "no JSON object"), (run_document([]), "no scenarios")],
)
def test_the_simulation_has_one_line_for_what_is_no_run(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    argv = [sys.executable, str(ROOT / "tools" / "machines.py"), str(tmp_path / "run.json")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"machines.py: {tmp_path}/run.json")
    assert reason in done.stderr


@pytest.mark.parametrize(
    "words", [["0"], ["-3"], ["two"], ["1000000"], ["2", "--slowness", "0"], ["2", "--slowness", "nan"]], ids=" ".join
)
def test_the_simulation_refuses_numbers_that_are_none(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "run.json").write_text(run_document([Record("test_1", "passed", seconds=30.0)]))
    argv = [sys.executable, str(ROOT / "tools" / "machines.py"), str(tmp_path / "run.json"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("machines.py: error: argument ")

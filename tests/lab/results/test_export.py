from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from lab.results.export import to_bencher, to_github, to_lines, to_pyperf
from lab.results.result import Better, Course, Result, Series, exact
from tests.lab.labs import ROOT
from tests.lab.results.samples import result, times


def sides() -> Result:
    series = [
        Series("reload", "s", (9.0, 9.0, *times(side == "B", middle=middle)), side=side, group="rounds", block=2)
        for side, middle in (("A", 0.02), ("B", 0.03))
    ]
    rates = [Series("UDP", "packets/s", values, Better.HIGHER, side="A") for values in [times(3, middle=2e6)]]
    others = [exact("size", "bytes", 7000, side="A"), exact("zero", "n", 0, side="A"), Series("tc", "s", (), side="A")]
    return result(*series, *rates, *others, sides=("A", "B"), course=Course(rounds=15, warm_up=1), seconds=125.0)


def pyperf(*arguments: str | Path) -> str:
    argv = [sys.executable, "-m", "pyperf", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pyperf_compares_an_export(tmp_path: Path) -> None:
    for side in "AB":
        (tmp_path / f"{side}.json").write_text(to_pyperf(sides(), side))
    told = pyperf("compare_to", tmp_path / "A.json", tmp_path / "B.json")
    assert "Mean +- std dev: [A] 20.0 ms +- 0.2 ms -> [B] 30." in told
    assert "1.50x slower" in told
    shown = pyperf("dump", "--quiet", tmp_path / "A.json")
    assert "UDP, time of one (packets/s)" in shown
    assert "7000" in pyperf("show", "--quiet", tmp_path / "A.json")
    told = pyperf("stats", "--quiet", "--benchmark", "reload", tmp_path / "A.json")
    assert "Total duration: 2 min 5.0 sec\n" in told, "that of the measurement, once"
    assert "Number of value per run: 2\n" in told


def test_pyperf_gets_values_after_the_warm_up_and_none_of_what_it_refuses() -> None:
    document = json.loads(to_pyperf(sides(), "A"))
    runs = {each["metadata"]["name"]: each["runs"] for each in document["benchmarks"]}
    assert runs.keys() == {"reload", "UDP, time of one (packets/s)", "size"}
    assert runs["reload"][0]["warmups"] == [[1, 9.0], [1, 9.0]]
    values = times(0)
    assert [run["values"] for run in runs["reload"]] == [list(values[at : at + 2]) for at in range(0, len(values), 2)]
    assert runs["UDP, time of one (packets/s)"][0]["values"] == [1 / times(3, middle=2e6)[0]]


def test_pyperf_gets_no_value_of_the_warm_up_in_place_of_one_that_it_refuses() -> None:
    series = [
        Series("some", "s", (0.0, 9.0, 1.0, 2.0), group="rounds", block=2),
        Series("none", "s", (9.0, 9.0, 0.0, 0.0), group="rounds", block=2),
    ]
    (found,) = json.loads(to_pyperf(result(*series, course=Course(rounds=1, warm_up=1)), ""))["benchmarks"]
    assert found["metadata"]["name"] == "some"
    assert [run["values"] for run in found["runs"]] == [[1.0, 2.0]]
    assert found["runs"][0]["warmups"] == [[1, 9.0]]


def test_each_line_says_where_its_value_comes_from() -> None:
    lines = [json.loads(line) for line in to_lines(sides()).splitlines()]
    assert len(lines) == sum(len(series.values) for series in sides().series)
    assert [(each["round"], each["warm_up"], each["value"]) for each in lines[:3]] == [
        (0, True, 9.0),
        (0, True, 9.0),
        (1, False, times(0)[0]),
    ]
    assert {each["side"] for each in lines} == {"A", "B"}
    assert lines[0]["subject"] == {"library": "our sources"}
    text = (ROOT / "docs" / "bench-json.md").read_text()
    sentence = text.partition("A line of `jsonl` has")[2].partition(".\n")[0]
    assert set(re.findall("`([a-z_]+)`", sentence)) == lines[0].keys()


def test_bencher_gets_medians_with_intervals_and_its_own_measures() -> None:
    found = json.loads(to_bencher(sides(), "A"))
    assert {name: list(measures) for name, measures in found.items()} == {
        "reload": ["latency"],
        "UDP": ["throughput"],
        "size": ["bytes"],
        "zero": ["n"],
    }
    reload = found["reload"]["latency"]
    assert 19e6 < reload["lower_value"] < reload["value"] < reload["upper_value"] < 21e6
    assert found["size"]["bytes"] == {"value": 7000}


def test_github_action_benchmark_gets_a_list_of_each_direction() -> None:
    smaller, bigger = (json.loads(to_github(sides(), "A", better)) for better in Better)
    assert [(each["name"], each["unit"]) for each in smaller] == [("reload", "ns"), ("size", "bytes"), ("zero", "n")]
    assert [(each["name"], each["unit"]) for each in bigger] == [("UDP", "packets/s")]
    assert set(smaller[0]) == {"name", "unit", "value", "range", "extra"}
    assert 19e6 < smaller[0]["value"] < 21e6

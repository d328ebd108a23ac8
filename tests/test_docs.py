"""The documents say what is: the commands and options they show exist, and run.json has the keys they name."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from datapath.base.timing import Interval
from datapath.reload.outcome import Attached, FailedReload, Outcome, Span
from lab.bench.parallel import ParallelReport, Percentiles, WorkerReport
from lab.cli.main import COMMANDS, build_parser
from lab.cli.report import run_json
from lab.corpus.classic import FAULTS as FAULTS_OF_LOADERS
from lab.corpus.faults import all_faults
from lab.results.result import FORMAT as RESULT_FORMAT
from lab.results.result import Series, to_json
from lab.results.run import RUN_FORMAT
from lab.scenario.details import failed_reload, phase, succeeded_reload
from lab.scenario.records import Record
from lab.traffic.report import Connections, FlowReport, Pause, TrafficReport
from lab.watch.violation import Violation
from tests.lab.report.shapes import node_shape, seen
from tests.lab.results.samples import result

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = re.compile(r"^    (?:\.venv/bin/)?reloadlab (?P<rest>.*)$|`reloadlab (?P<inline>[^`]*)`", re.MULTILINE)


def shown_commands(text: str) -> list[list[str]]:
    """Return the words of every `reloadlab ...` that a document shows, without comments."""
    found = []
    for match in SHOWN.finditer(text):
        rest = match["rest"] if match["rest"] is not None else match["inline"]
        words = shlex.split(rest.replace("\n", " "), comments=True)
        found.append(words[: words.index("|")] if "|" in words else words)
    return found


def commands() -> list[tuple[str, list[str]]]:
    return [(path.name, words) for path in DOCUMENTS for words in shown_commands(path.read_text()) if words]


def test_every_command_is_documented() -> None:
    shown = {words[0] for _, words in commands()}
    assert set(COMMANDS) - shown == set()


@pytest.mark.parametrize(("document", "words"), commands(), ids=lambda value: str(value)[:60])
def test_shown_commands_are_understood(document: str, words: list[str]) -> None:
    # A command named in passing, without what it works on, only has to be there.
    assert words[0] in COMMANDS, document
    if len(words) > 1:
        args, unknown = build_parser(words[0]).parse_known_args(words)
        assert unknown == []
        assert args.run is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"`((?:lab|datapath|scenarios|docs|bpf|tools)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_every_invariant_has_a_line() -> None:
    text = (ROOT / "docs" / "invariants.md").read_text()
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert rows == list(range(1, len(rows) + 1))
    assert str(Violation(5, "pod-1: no direct route to 10.244.0.3")) in text
    checked = "".join(path.read_text() for path in (ROOT / "lab" / "watch").rglob("*.py"))
    assert {int(number) for number in re.findall(r"Violation\((\d+),", checked)} == set(rows)


def test_documented_keys_of_run_json() -> None:
    document = written()
    text = (ROOT / "docs" / "run-json.md").read_text()
    assert f"| `format` | {RUN_FORMAT};" in text
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    scenario, reload, parallel = document["scenarios"][0], document["reloads"][0], document["parallel"]
    failed, shape = document["failed_reloads"][0], document["nodes"][0]
    traffic = scenario["traffic"][0]
    for part, value in zip(parts, (document, scenario, traffic, reload, failed, parallel, shape), strict=True):
        assert table_keys(part) == set(value)
    prose = {word for part in parts for word in re.findall(r"`(\w+)`", part)}
    span, worker = reload["spans"][0], parallel["workers"][0]
    flow = traffic["flows"][0]
    for value in (scenario["steps"], traffic["starved"][0], flow, flow["delays"], flow["connections"]):
        assert set(value) - prose == set()
    assert set(failed["rollback"]) - prose == set()
    inside = shape["endpoints"][0]["inside"]
    for value in (scenario["nodes"][0], shape["interfaces"][0], shape["routes"][0], inside, inside["peer"]):
        assert set(value) - prose == set()
    assert {*shape["endpoints"][0], *shape["others"][0]} - prose == set()
    results = (ROOT / "docs" / "bench-json.md").read_text()
    assert table_keys(results.partition("## machine")[2].partition("\n## ")[0]) == set(document["machine"])
    assert set(document["load"]) - prose == set()
    for value in (reload["attached"][0], span, span["work"], worker, worker["reload"]):
        assert set(value) - prose == set()


def test_documented_keys_of_results() -> None:
    document = to_json(result(Series("x", "s", (1.0,))))
    text = (ROOT / "docs" / "bench-json.md").read_text()
    assert f"| `format` | {RESULT_FORMAT};" in text
    whole, machine, series, _ = re.split(r"^## ", text, flags=re.MULTILINE)
    for part, value in ((whole, document), (machine, document["machine"]), (series, document["series"][0])):
        assert table_keys(part) == set(value)
    prose = set(re.findall(r"`(\w+)`", whole))
    assert {*document["load"], *document["course"]} - prose == set()


def table_keys(text: str) -> set[str]:
    """Return what stands in the first column of a table."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_the_faults_of_the_corpus_are_counted() -> None:
    """In the table of kinds: how many there are, and how many of them are equivalent."""
    loaders = {fault.name for fault in FAULTS_OF_LOADERS}
    found: Counter[tuple[str, bool]] = Counter()
    for fault in all_faults():
        part = "`loader/...`" if fault.name in loaders else f"`{fault.kind}`"
        found[part, bool(fault.equivalent)] += 1
    text = (ROOT / "docs" / "corpus.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\| \d+ \|$", text, re.M)
    ]
    told = {row[1] if row[0] == "" else row[0]: (int(row[-2]), int(row[-1])) for row in rows}
    assert told == {
        part: (found[part, False] + found[part, True], found[part, True]) for part in dict.fromkeys(p for p, _ in found)
    }


def written() -> dict[str, Any]:
    """Return a run.json that holds one of everything."""
    work = Interval(1, 10, 20)
    spans = (Span("compile", "bpf_lxc.c", work, (work,)),)
    attached = (Attached("lxc1", "ingress", "cil_from_container", 7),)
    outcome = Outcome("pod-1", 101, 2, attached, ("cilium_lxc",), ("careful",), spans)
    flow = FlowReport("a -> b tcp v4", "tcp", 3, 3, 3, 0, connections=Connections(1, 9, 9, 0, 0))
    sent = TrafficReport(1, 9, 2, 3, 4, (Pause(2, 3),), (flow,))
    failed = failed_reload(1, FailedReload("pod-1", 101, 3, spans, work, "no space left"))
    reloads = (succeeded_reload(1, outcome, {"cil_from_container": 3}),)
    others = [{"number": 2, "port": "node-1", "addresses": [], "pods": []}]
    record = Record(
        "a.py::test_b",
        reloads=reloads,
        failed_reloads=(failed,),
        sent=3,
        traffic=(phase(sent, [3]),),
        nodes=(seen(node_shape(others=others)),),
    )
    times = Percentiles(1.0, 2.0, 3.0, 0.5)
    row = WorkerReport(workers=1, reloads=1, reloads_per_second=9.0, reload=times, steps={"compile": times})
    report = ParallelReport(pods=1, rounds=1, workers=(row,), sent=1, lost=0, problems=(), failures=(), tracing=None)
    assert asdict(work) == {"tid": 1, "start_ns": 10, "end_ns": 20}
    return dict(json.loads(json.dumps(run_json([record], report, 1.0, complete=True))))

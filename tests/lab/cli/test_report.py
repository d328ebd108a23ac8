from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lab.cli.report import RunFile, failed_before, print_scenarios, run_json
from lab.scenario.records import NO_STEPS, Record
from lab.system.output import OutputDirectory
from tests.lab.report.shapes import node_shape, seen

RECORD = Record(
    "scenarios/test_map_migration.py::test_shared_map[key size]",
    "passed",
    1.0,
    reloads=({"subject": "pod-1"}, {"subject": "host"}),
    sent=120,
    steps={"seen": 7, "unseen": 3, "seen_kinds": ["compile of a pod"], "unseen_kinds": ["commit of a pod"]},
)


def printed(*records: Record) -> str:
    out = io.StringIO()
    print_scenarios(Console(file=out, width=100), records)
    return out.getvalue()


def test_scenario_is_one_line() -> None:
    lines = printed(RECORD).splitlines()
    assert lines[0].split() == ["scenario", "outcome", "reloads", "unseen", "sent", "lost"]
    # Brackets are markup to the library that prints, and text to us.
    assert lines[1].startswith("map migration: shared map[key size] ")
    assert lines[1].split()[-5:] == ["passed", "2", "3", "120", "0"]
    assert len(lines) == 4
    assert lines[3] == "7 of 10 steps had packets under way; never: commit of a pod"


def test_a_kind_of_step_that_one_scenario_has_seen_is_not_called_unseen() -> None:
    steps = {"seen": 1, "unseen": 0, "seen_kinds": ["commit of a pod"], "unseen_kinds": []}
    text = printed(RECORD, replace(RECORD, name="test_other.py::test_it", steps=steps))
    assert text.splitlines()[-1] == "8 of 11 steps had packets under way"


def test_what_could_not_be_watched_is_told_once_with_its_scenarios() -> None:
    gap = "the kernel's log is not read: /dev/kmsg: Operation not permitted"
    records = [replace(RECORD, name=f"test_{name}.py::test_it", gaps=(gap,)) for name in "ab"]
    assert printed(*records, RECORD).splitlines()[-1] == f"not checked in 2 scenarios: {gap}"


def test_why_scenarios_were_skipped_is_told_once_with_their_number() -> None:
    skipped = replace(RECORD, outcome="skipped", message="Skipped: theirs count otherwise", reloads=(), steps=NO_STEPS)
    lines = printed(skipped, replace(skipped, name="test_b.py::test_it"), RECORD).splitlines()
    assert lines[-1] == "skipped 2 scenarios: theirs count otherwise"


def test_a_run_without_reloads_tells_nothing_of_steps() -> None:
    assert "steps" not in printed(replace(RECORD, reloads=(), steps=NO_STEPS))


def test_failure_is_told_whole() -> None:
    story = "E   assert [1] == [2]\nE   [red]not markup[/]\n"
    text = printed(replace(RECORD, outcome="failed", message=story, lost=3))
    assert story.strip() in text
    assert "failed" in text


@pytest.mark.parametrize("outcome", ["error", "not run", "skipped"])
def test_every_outcome_is_in_the_table(outcome: str) -> None:
    text = printed(replace(RECORD, outcome=outcome, message="the reason"))
    assert f"  {outcome} " in text
    assert ("the reason" in text) == (outcome != "not run")


def test_run_json_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out" / "run.json"
    with OutputDirectory(path.parent) as output:
        file = RunFile(output)
        file.write([])
        assert json.loads(path.read_text())["scenarios"] == []
        file.write([RECORD], complete=True)
    document = json.loads(path.read_text())
    assert document["complete"] is True
    assert document["parallel"] is None
    assert document["scenarios"] == [json.loads(json.dumps(RECORD.to_json())) | {"reloads": 2, "failed_reloads": 0}]
    assert document["reloads"] == [{"scenario": RECORD.name, **reload} for reload in RECORD.reloads]
    assert [item.name for item in path.parent.iterdir()] == ["run.json"]


def test_what_fails_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing takes long it is done seldom, and a machine that is ended takes with it what was not written."""
    path = tmp_path / "run.json"
    at = 0.0

    def now() -> float:
        nonlocal at
        at += 20
        return at

    records: list[Record] = []
    with OutputDirectory(tmp_path) as output, monkeypatch.context() as patched:
        patched.setattr("lab.cli.report.time.monotonic", now)
        file = RunFile(output)
        for outcome, written in (("passed", 1), ("passed", 1), ("failed", 3), ("passed", 3)):
            records.append(replace(RECORD, name=str(len(records)), outcome=outcome))
            file.update(records.copy(), changed=True)
            assert len(json.loads(path.read_text())["scenarios"]) == written


def test_nodes_of_the_same_kind_have_one_shape() -> None:
    first, other = seen(node_shape(1)), seen(node_shape(2))
    renamed = {**seen(node_shape(1), 2), "names": {"pod-1": "lxc9"}}
    records = [Record("a", nodes=(first, other)), Record("b", nodes=(renamed,)), Record("c")]
    document = run_json(records, None, 1.0, complete=True)
    assert document["nodes"] == [node_shape(1), node_shape(2)]
    assert [[each["shape"] for each in scenario["nodes"]] for scenario in document["scenarios"]] == [[0, 1], [0], []]
    assert document["scenarios"][1]["nodes"] == [{"number": 2, "shape": 0, "names": {"pod-1": "lxc9"}}]
    # What is recorded goes from process to process as JSON.
    assert Record.from_json(json.loads(json.dumps(records[0].to_json()))).nodes == (first, other)


def test_what_failed_before_is_read_from_run_json() -> None:
    outcomes = ("passed", "failed", "error", "skipped", "not run")
    records = [replace(RECORD, name=outcome, outcome=outcome) for outcome in outcomes]
    document = run_json(records, None, 1.0, complete=False)
    assert failed_before(json.dumps(document)) == ["failed", "error"]
    for text in (
        None,
        "",
        "{",
        "[" * 100_000,
        "null",
        "[]",
        "{}",
        '{"format": 4}',
        json.dumps(document | {"format": 2}),
    ):
        assert failed_before(text) == []

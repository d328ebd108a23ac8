from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab.cli.report import print_scenarios, short_name, write_json

RECORD: dict[str, Any] = {
    "name": "scenarios/test_map_migration.py::test_shared_map[key size]",
    "outcome": "passed",
    "seconds": 1.0,
    "message": "",
    "violations": [],
    "reloads": [{"subject": "pod-1"}, {"subject": "host"}],
    "sent": 120,
    "lost": 0,
}


def printed(*records: dict[str, Any]) -> str:
    out = io.StringIO()
    print_scenarios(Console(file=out, width=100), records)
    return out.getvalue()


def test_scenario_is_one_line() -> None:
    lines = printed(RECORD).splitlines()
    assert lines[0].split() == ["scenario", "outcome", "reloads", "sent", "lost"]
    # Brackets are markup to the library that prints, and text to us.
    assert lines[1].startswith("map migration: shared map[key size] ")
    assert lines[1].split()[-4:] == ["passed", "2", "120", "0"]
    assert len(lines) == 2


def test_failure_is_told_whole() -> None:
    story = "E   assert [1] == [2]\nE   [red]not markup[/]\n"
    text = printed(RECORD | {"outcome": "failed", "message": story, "lost": 3})
    assert story.strip() in text
    assert "failed" in text


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        ("scenarios/test_rollback.py::test_second_attach_fails", "rollback: second attach fails"),
        ("test_mine.py::test_mine[a-b]", "mine: mine[a-b]"),
    ],
)
def test_short_name(nodeid: str, name: str) -> None:
    assert short_name(nodeid) == name


def test_run_json_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out" / "run.json"
    write_json(path, [RECORD], None, 1.0)
    write_json(path, [RECORD], None, 2.5)
    document = json.loads(path.read_text())
    assert document["seconds"] == 2.5
    assert document["parallel"] is None
    assert document["scenarios"] == [RECORD | {"reloads": 2}]
    assert document["reloads"] == [{"scenario": RECORD["name"], **reload} for reload in RECORD["reloads"]]
    assert [item.name for item in path.parent.iterdir()] == ["run.json"]

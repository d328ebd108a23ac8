"""documents.py: each kind of file is known by its keys, and refused in a line if no page can be made of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.cli.corpus_view import Report
from lab.proof.result import Proof
from lab.proof.sweep import SweepResult
from lab.proof.two import Meetings
from lab.report.documents import BadDocument, read_document
from lab.results.result import LARGEST, Series, to_text
from tests.lab.report.samples import losing, parallel, record, run
from tests.lab.report.shapes import node_shape, seen
from tests.lab.results.samples import result

CASES: Mapping[str, Mapping[str, Any]] = {
    "run": run(record(), losing(), measured=parallel()),
    "corpus": Report().to_json(1.0),
    "sweep": SweepResult([], [], [], 1.0, 0).to_json(),
    "proof": Proof([], [], 0, 0, []).to_json(),
    "meetings": Meetings([], [], [], 1.0, 0).to_json(),
}
"""What the commands write."""


def elsewhere(**changes: Any) -> dict[str, Any]:
    """Return a run whose scenario was run by another machine."""
    found = run(record())
    found["scenarios"][0] |= {"machine": "ssh:alpha", "kernel": "6.1.0", **changes}
    return found


def with_node(**changes: Any) -> dict[str, Any]:
    """Return a run whose scenario has a node of this shape."""
    return run(record(nodes=(seen(node_shape(1, **changes)),)))


@pytest.mark.parametrize("kind", CASES)
def test_what_the_commands_write_is_understood(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(CASES[kind]))
    document = read_document(path)
    assert (document.kind, document.name, document.content) == (kind, str(path), CASES[kind])


def test_results_are_read_as_compare_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    wanted = result(Series("reload", "s", (1.0, 2.0)))
    path.write_text(to_text(wanted))
    assert read_document(path).result == wanted
    path.write_text(to_text(result(Series("reload", "s", (1.0,)), complete=False)))
    with pytest.raises(BadDocument, match=r"cut short: measure again$"):
        read_document(path)


def test_a_run_without_scenarios_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run(complete=False)))
    assert read_document(path).content["scenarios"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no result: empty"),
        ("hello", "holds no result: not JSON ("),
        (json.dumps(CASES["run"])[:-40], "holds no result: not JSON ("),
        ("[1]", "holds no JSON object: give a run.json, or what `--out` or `--json` wrote"),
        (
            "{}",
            "is neither a run.json nor a result of `bench --out`, nor what corpus, faults or prove print with --json",
        ),
        (json.dumps({**CASES["run"], "format": 3}), "has format 3, this version reads 4: run it again"),
        (json.dumps({**CASES["corpus"], "format": 9}), "has format 9, this version reads 2: run it again"),
        (json.dumps({**CASES["run"], "seconds": "x"}), "is damaged: seconds is not a number"),
        (json.dumps({**CASES["run"], "machines": None}), "is damaged: machines is not a list"),
        (json.dumps({**CASES["run"], "machines": [{"name": "ssh:a"}]}), "is damaged: no machines[0].kernel"),
        (json.dumps(elsewhere(kernel=None)), "is damaged: scenarios[0].kernel is not text"),
        (json.dumps(with_node(version=2)), "is damaged: nodes[0] has version 2, this version reads 1"),
        (json.dumps(with_node(routes=[{}])), "is damaged: no nodes[0].routes[0].destination"),
        (json.dumps({**with_node(), "nodes": []}), "is damaged: scenarios[0].nodes[0] has shape 0, of 0"),
        (
            json.dumps(with_node()).replace('"pod-1": "lxc1"', '"pod-1": 3'),
            "is damaged: scenarios[0].nodes[0].names.pod-1 is not text",
        ),
        (json.dumps({**CASES["run"], "scenarios": []}), "is damaged: reloads[0] is of no scenario"),
        (json.dumps(run(record(), record())), "is damaged: two scenarios have the same name"),
        (
            json.dumps(CASES["run"]).replace('"values_ms"', '"values"'),
            "is damaged: no parallel.workers[0].reload.values_ms",
        ),
    ],
    ids=[
        "empty",
        "text",
        "truncated",
        "list",
        "other",
        "version",
        "corpus",
        "type",
        "no machines",
        "machine",
        "where",
        "version of a node",
        "node",
        "no shape",
        "name",
        "orphan",
        "twice",
        "steps",
    ],
)
def test_bad_files_are_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(BadDocument, match=f"^{re.escape(str(path))} {re.escape(said)}") as caught:
        read_document(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match=r"No such file or directory$"):
        read_document(tmp_path / "missing.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadDocument, match=r"is not a file$"):
        read_document(tmp_path / "pipe")
    huge = tmp_path / "huge.json"
    huge.touch()
    os.truncate(huge, LARGEST + (1 << 20))
    with pytest.raises(BadDocument, match=r"has 257 MiB; a result has at most 256$"):
        read_document(huge)

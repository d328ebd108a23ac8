"""docs/json.md says which keys the output of every command has: those and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from lab.cli.main import main
from lab.cli.watch_view import Picture
from lab.node import registry
from lab.node.node import Node
from lab.results.result import Series, exact, to_text
from lab.system.tools import run
from lab.watch.events import Drop, Lost, Trace, Unknown, Verdict, to_json
from lab.watch.live import Look, UnderWay
from tests.lab.labs import ROOT, unique_name
from tests.lab.results.samples import result, times
from tests.lab.results.test_history import filled, measured
from tests.netns import nsenter

TEXT = (ROOT / "docs" / "json.md").read_text()


def keys_in(text: str) -> set[str]:
    """Return the words in backticks, without those of remarks in parentheses."""
    return set(re.findall(r"`([a-z0-9_]+)`", re.sub(r"\([^)]*\)", "", text)))


def documented(command: str) -> set[str]:
    """Return the keys in the row of a command, or of an event."""
    (row,) = re.findall(rf"^\| `{re.escape(command)}` \|(.*)\|$", TEXT, re.MULTILINE)
    return keys_in(row.split("|")[-1])


def described(beginning: str) -> set[str]:
    """Return the keys in the sentence that begins with these words."""
    (sentence,) = re.findall(rf"{re.escape(beginning)}(.*?)\.(?:\s|\Z)", TEXT, re.DOTALL)
    return keys_in(sentence)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with their programs, and connections between them."""
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    name = unique_name()[:29]
    try:
        assert main(["up", name, "--nodes", "2", "--pods", "1", "--tunnel"]) == 0
        yield name
    finally:
        for member in registry.members(name):
            registry.remove(member, force=True)


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.privileged
def test_keys_of_nodes_are_documented(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = answer(capsys, "show", cluster)
    assert [node["lab"] for node in shown] == [f"{cluster}-1", f"{cluster}-2"]
    for node in shown:
        assert set(node) == documented("show")
        for pod in (node["health"], *node["pods"]):
            assert set(pod) == described("A pod, and `health`:")
        inside = [interface for found in node["inside"].values() for interface in found]
        for interface in (*node["interfaces"], *node["outside"], *inside):
            assert set(interface) == described("An interface:")
    listed = answer(capsys, "ls", cluster)
    assert [lab["lab"] for lab in listed] == [f"{cluster}-1", f"{cluster}-2"]
    assert all(set(lab) == documented("ls") for lab in listed)


@pytest.mark.privileged
def test_keys_of_watch_are_documented(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["watch", cluster, "--once", "--json"]) == 0
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [look["lab"] for look in looks] == [f"{cluster}-1", f"{cluster}-2"]
    for look in looks:
        assert set(look) == described("one object per look and node, a line each:")
        for interface in look["interfaces"]:
            assert set(interface) == described("Its interfaces have")
            assert all(set(hook) == described("A hook has") for hook in interface["hooks"])
        assert set(look["last_reload"]) == described("A reload that was seen has")


def test_keys_of_packets_of_watch_are_documented() -> None:
    counted = Look("demo", 1, 1, (), {(0, 1): 3}, None)
    picture = Picture()
    picture.take(counted)
    (row,) = picture.to_json()["packets"]
    assert set(row) == described("An object of `packets` has")
    assert set(asdict(UnderWay("pod-1", ()))) == described("An object of `under_way` has")


@pytest.mark.privileged
def test_keys_of_up_and_down_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    name = unique_name()
    (node,) = answer(capsys, "up", name, "--pod", "web:app=web,tier=front", "--pods", "1", "--no-programs")
    assert set(node) == documented("up")
    assert (node["lab"], node["cluster"], node["programs"]) == (name, None, 0)
    assert [(pod["name"], pod["labels"]) for pod in node["pods"]] == [("web", ["app=web", "tier=front"]), ("pod-1", [])]
    assert all(set(pod) == described("A pod, and `health`:") for pod in node["pods"])
    assert answer(capsys, "down", name) == {"removed": [name]}
    assert documented("down") == {"removed"}


@pytest.mark.privileged
def test_keys_of_plans_and_reloads_are_documented(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    plans = answer(capsys, "plan", f"{cluster}/pod-1")
    assert [(plan["lab"], plan["subject"]) for plan in plans] == [(f"{cluster}-{n}", "pod-1") for n in (1, 2)]
    assert all(set(plan) == documented("plan") for plan in plans)
    assert all(set(step) == described("A step of a plan:") for plan in plans for step in plan["steps"])
    everything = answer(capsys, "plan", f"{cluster}-1")
    assert [plan["subject"] for plan in everything] == ["host", "overlay", "health", "pod-1"]
    reload = answer(capsys, "reload", f"{cluster}/pod-1", f"{cluster}-2/host")
    assert set(reload) == documented("reload")
    done = [(outcome["lab"], outcome["subject"]) for outcome in reload["reloads"]]
    assert done == [(f"{cluster}-1", "pod-1"), (f"{cluster}-2", "pod-1"), (f"{cluster}-2", "host")]
    wanted = {"lab", *table_keys("reloads[]")} - {"scenario", "node", "packets"}
    assert all(set(outcome) == wanted for outcome in reload["reloads"])


@pytest.mark.privileged
def test_keys_of_a_failure_are_documented(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["reload", f"{cluster}-1/pod-1", "-D", "REJECTED_BY_VERIFIER=1", "--json"]) == 1
    out, err = capsys.readouterr()
    (failure,) = json.loads(out)["failures"]
    assert set(failure) == described("An object of `failures`:")
    assert err == f"reloadlab: {cluster}-1/pod-1: {failure['error']}\n"


def table_keys(section: str) -> set[str]:
    """Return the first column of a section's table in docs/run-json.md."""
    text = (ROOT / "docs" / "run-json.md").read_text()
    part = next(part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(section))
    return {key for cell in re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE) for key in re.findall(r"`(\w+)`", cell)}


@pytest.mark.privileged
@pytest.mark.parametrize("name", ["lxc", "ipcache", "policy", "ct", "metrics", "tunnel"])
def test_keys_of_maps_are_documented(cluster: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for node in map(Node.open, (f"{cluster}-1", f"{cluster}-2")):
        run(nsenter(node.netns("pod-1"), "ping", "-c1", "-W5", str(node.facts.health.ipv4)))
    rows = answer(capsys, "maps", cluster, name)
    assert {row["lab"] for row in rows} == {f"{cluster}-1", f"{cluster}-2"}
    assert all(set(row) == documented(f"maps LAB {name}") for row in rows)


@pytest.mark.privileged
def test_policies_and_connections(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = answer(capsys, "policy", cluster)
    assert [node["lab"] for node in nodes] == [f"{cluster}-1", f"{cluster}-2"]
    entry = documented("maps LAB policy") - {"lab"}
    assert all(set(node) == documented("policy") for node in nodes)
    assert all(set(row) == entry for node in nodes for row in node["entries"])
    assert {row["endpoint"] for row in answer(capsys, "policy", f"{cluster}-1/pod-1")[0]["entries"]} == {"pod-1"}
    restored = answer(capsys, "restore", cluster)
    assert [row["lab"] for row in restored] == [f"{cluster}-1", f"{cluster}-2"]
    assert all(set(row) == documented("restore") for row in restored)
    rows = answer(capsys, "gc", cluster)
    assert rows
    assert all(set(row) == documented("gc") for row in rows)


@pytest.mark.parametrize(
    "event",
    [
        Drop(133, 1, 2, 3, 4, 5, 6, 7, "bpf_lxc.c", 8, "arp"),
        Trace(0, 1, 2, 3, 4, 5, 6, "new", 7, "arp"),
        Verdict(1, 2, 3, 4, 0, "ingress", 6, 80, "L3-L4", "arp"),
        Lost(1, 0),
        Unknown(9, 4),
    ],
    ids=lambda event: type(event).__name__,
)
def test_events(event: Drop | Trace | Verdict | Lost | Unknown) -> None:
    found = to_json(event)
    assert {"lab", *found} == documented(found["event"]) | {"lab", "event"}


@pytest.mark.privileged
def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == documented("doctor")
    assert all(set(row) == described("A requirement:") for row in found["requirements"])


@pytest.mark.privileged
def test_objects(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = registry.lab_root(f"{cluster}-1") / registry.STATE
    path = str(next(node.glob("*/bpf_lxc.o")))
    inspected = answer(capsys, "inspect", path)
    assert set(inspected) == documented("inspect")
    for kind, beginning in (
        ("programs", "A program of `inspect`:"),
        ("maps", "A map of `inspect`:"),
        ("constants", "A constant:"),
    ):
        assert inspected[kind]
        assert all(set(item) == described(beginning) for item in inspected[kind]), kind
    verified = answer(capsys, "verify", path, "--loads", "1")
    assert documented("verify") <= set(verified)
    assert all(described("A program of `verify`:") <= set(program) for program in verified["programs"])


def test_keys_of_comparisons_are_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(to_text(result(Series("x", "s", times(1)))))
    found = answer(capsys, "compare", str(path), str(path))
    assert set(found) == documented("compare")
    (comparison,) = found["comparisons"]
    assert set(comparison) == described("An object of `comparisons`:")
    (metric,) = comparison["metrics"]
    assert set(metric) == described("An object of `metrics`:")
    assert set(metric["old"]) == described("An object of `old` and `new`:")


def test_histories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, [measured(number, exact("size", "bytes", number // 2 + 7)) for number in range(4)])
    path = tmp_path / "result"
    path.write_text(to_text(measured(9)))
    assert set(answer(capsys, "history", "add", str(tmp_path / "other"), str(path))) == documented("history add")
    (series,) = answer(capsys, "history", "show", str(tmp_path))
    assert set(series) == documented("history show")
    assert set(series["metrics"][0]) == described("An object of `metrics` of `history show`:")
    capsys.readouterr()
    assert main(["history", "check", str(tmp_path), "--json"]) == 1
    checked = json.loads(capsys.readouterr().out)
    assert set(checked) == documented("history check")
    assert set(checked["series"][0]) == documented("history show") - {"metrics"} | {"steps", "unknown"}
    assert set(checked["series"][0]["steps"][0]) == described("An object of `steps`:")

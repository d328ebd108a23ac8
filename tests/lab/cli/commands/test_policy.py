from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.agent import enforcement
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.snapshot import take
from tests.lab.labs import removed, unique_name

pytestmark = pytest.mark.privileged

CLOSED = {"name": "closed", "endpoint": "pod-1", "ingress": [{}]}


@pytest.fixture
def lab() -> Iterator[str]:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1))
        yield name


def test_apply_show_clear(lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first load as well as after it: the entries come with the maps."""
    file = tmp_path / "closed.json"
    file.write_text(json.dumps(CLOSED))
    assert main(["policy", lab, str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{lab}: closed\nnothing is loaded yet")
    assert main(["reload", f"{lab}/pod-1"]) == 0
    capsys.readouterr()
    assert main(["policy", lab, "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["policies"] == [CLOSED]
    assert [(row["direction"], row["name"]) for row in document["entries"]] == [("egress", "any"), ("ingress", "host")]
    assert main(["maps", f"{lab}/pod-1", "policy"]) == 0
    assert "pod-1     ingress           1  host  any       any   allow" in capsys.readouterr().out
    assert main(["policy", lab, "--clear"]) == 0
    assert capsys.readouterr().out.startswith(f"{lab}: no policy: everything passes\nendpoint  direction")


def test_policy_of_a_host_that_nobody_asks(lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs without the host firewall leave the host alone, whatever the entries say."""
    file = tmp_path / "host.json"
    file.write_text(json.dumps({**CLOSED, "endpoint": "host"}))
    hint = f"no program enforces the host's policy: reloadlab reload {lab} -D ENABLE_HOST_FIREWALL"
    for options, asked in (([], False), (["-D", "ENABLE_HOST_FIREWALL"], True), ([], False)):
        assert main(["reload", f"{lab}/host", *options]) == 0
        assert main(["policy", lab, str(file)]) == 0
        assert (hint not in capsys.readouterr().out) == asked
    file.write_text(json.dumps(CLOSED))
    assert main(["policy", lab, str(file)]) == 0
    assert hint not in capsys.readouterr().out


def test_a_peer_that_selects_nobody_is_a_warning(lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When the policy is applied, and whenever it is shown: a misspelt label denies without a word."""
    file = tmp_path / "web.json"
    file.write_text(json.dumps({**CLOSED, "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "clent"}}]}]}))
    warning = "closed: ingress: fromEndpoints selects no pod: app=clent"
    for argv in (["policy", lab, str(file)], ["policy", lab]):
        assert main(argv) == 0
        assert capsys.readouterr().err == f"reloadlab: warning: {warning}\n"
    assert document(lab, capsys)["warnings"] == [warning]
    file.write_text(json.dumps({**CLOSED, "ingress": [{"fromEndpoints": [{"matchLabels": {"name": "pod-1"}}]}]}))
    assert main(["policy", lab, str(file)]) == 0
    assert capsys.readouterr().err == ""


def test_interrupted_command_leaves_one_of_the_two(
    loaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C right after the policies are stored: what is stored and what the maps hold still agree."""
    before = document(loaded, capsys)
    file = tmp_path / "open.json"
    file.write_text(json.dumps({**CLOSED, "ingress": [{"fromIdentities": [500]}]}))
    store = enforcement.store

    def interrupted(node: Node, policies: object) -> None:
        store(node, policies)
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(enforcement, "store", interrupted)
    assert main(["policy", loaded, str(file)]) == 130
    after = document(loaded, capsys)
    identities = {row["identity"] for row in after["entries"] if row["endpoint"] == "pod-1"}
    assert (500 in identities) == (after["policies"] != before["policies"])
    file.write_text(json.dumps(CLOSED))
    assert main(["policy", loaded, str(file)]) == 0


SMALL = "POLICY_MAP_SIZE=8"
FULL = {**CLOSED, "ingress": [{"fromIdentities": list(range(500, 508))}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param({**CLOSED, "endpoint": "pod-9"}, "has no endpoint pod-9 (of policy closed)", id="endpoint"),
        pytest.param({**CLOSED, "ingress": [{"fromIdentities": [1 << 25]}]}, "out of range", id="identity"),
        pytest.param({**CLOSED, "sleep": 1}, "unknown key 'sleep'", id="key"),
        pytest.param(
            [{**CLOSED, "name": "b", "endpoint": "health"}, FULL], "policy map of pod-1 is too small", id="full map"
        ),
    ],
)
def test_bad_policies(
    loaded: str, tmp_path: Path, content: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and everything as it was: what is stored, and every entry of every map."""
    before = take(Node.open(loaded)).datapath(), document(loaded, capsys)
    assert before[1]["policies"] == [CLOSED]
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    assert main(["policy", loaded, str(file)]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert (take(Node.open(loaded)).datapath(), document(loaded, capsys)) == before


def test_bad_call(loaded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", loaded, str(tmp_path / "any.json"), "--clear"]) == 2
    assert "not both" in capsys.readouterr().err


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A lab with a policy, whose maps hold few entries."""
    file = tmp_path_factory.mktemp("policy") / "closed.json"
    file.write_text(json.dumps(CLOSED))
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1))
        assert main(["reload", name, "-D", SMALL]) == 0
        assert main(["policy", name, str(file)]) == 0
        yield name


def document(lab: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["policy", lab, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out)[0])

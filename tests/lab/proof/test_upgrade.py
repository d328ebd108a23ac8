"""Labs that are up go to another release and back: nothing is lost by ours, and what a broken way loses is told."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bpf import LIBRARY
from datapath.base.bpftypes import MapType
from datapath.endpoint import Attachment
from datapath.kernel import bpf
from datapath.kernel.map import open_pin
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.agent import enforcement
from lab.agent.agent import Agent
from lab.agent.options import Options
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.proof.upgrade import Upgrade
from lab.proof.upgrade import run as run_upgrade
from lab.system.launch import module_argv
from tests.datapath.support import NEEDS_TCX
from tests.lab.emptied import before
from tests.lab.labs import removed, unique_name
from tests.lab.loaders.hardy import FILE
from tests.lab.proof.gaps import gaps_of
from tests.lab.proof.refused import refused

pytestmark = pytest.mark.privileged

OTHER = ["--to", "builtin", "-D", "RENUMBERED_SLOTS=1", "-D", "POLICY_VALUE_PAD=1"]
"""Our own pipeline again, with programs that are numbered otherwise, and policy entries that must be written anew."""

POLICY = [{"name": "one", "endpoint": "pod-1", "ingress": [{"fromEntities": ["world"]}]}]


PIPELINE = shlex.join(module_argv("lab.loaders.pipeline"))
"""Our own pipeline as another loader."""


@contextmanager
def lab(pods: int = 1) -> Iterator[str]:
    """Yield the name of a lab that has a policy."""
    with removed(unique_name()) as name:
        with Agent(Node.up(NodeSpec(name, pods=pods))) as agent:
            agent.start()
            agent.apply_policies(POLICY)
        yield name


@pytest.fixture(scope="module")
def standing() -> Iterator[str]:
    """A lab that no test upgrades, for calls that are refused."""
    with lab() as name:
        yield name


def upgraded(name: str, argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Upgrade a lab, which ends with this code; return the document."""
    ended = main(["upgrade", name, *argv, "--json"])
    captured = capsys.readouterr()
    assert ended == code, captured.err
    document: dict[str, Any] = json.loads(captured.out)
    return document


def calls_of(document: dict[str, Any], way: int) -> list[str]:
    """Return the calls of one way of an upgrade."""
    ways = list(dict.fromkeys(call["reload"] for call in document["calls"]))
    return [call["call"] for call in document["calls"] if call["reload"] == ways[way]]


def failures(document: dict[str, Any]) -> list[str]:
    return [finding["what"] for finding in document["findings"] if finding["invariant"] == 8]


def test_there_and_back_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Its options are those of before, and the policies that it had hold again."""
    with lab() as name:
        node = Node.open(name)
        assert main(["upgrade", name, *OTHER, "--back", "--order", "pods", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        ways = list(dict.fromkeys((call["round"], call["reload"]) for call in document["calls"]))
        to = "our own C -D RENUMBERED_SLOTS=1 -D POLICY_VALUE_PAD=1"
        assert ways == [(1, f"{name} to {to}"), (2, f"{name} back")]
        assert (document["findings"], document["lost"]) == ([], 0)
        attached = [call["call"].split()[1] for call in document["calls"] if call["call"].startswith("RTM_NEWTFILTER")]
        assert attached[:3] == [node.pod("health").ifname, node.pod("pod-1").ifname, "cilium_host"]
        assert Options.kept(node) == Options()
        assert enforcement.document_of(node) == POLICY


@pytest.mark.parametrize(
    ("at", "last"),
    [("attach ingress", "begun anew"), ("RTM_NEWTFILTER cilium_host *", "rolled back")],
    ids=["step", "call"],
)
def test_killed_on_its_way(at: str, last: str, capsys: pytest.CaptureFixture[str]) -> None:
    with lab() as name:
        back = ["--back"] if last == "rolled back" else []
        assert main(["upgrade", name, *OTHER, "--at", at, *back, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["findings"], document["lost"]) == ([], 0)
        ways = list(dict.fromkeys(call["reload"] for call in document["calls"]))
        assert len(ways) == 2
        assert ways[0].endswith(f"killed at {at}")
        assert ways[1].endswith(last)
        assert bool(Options.kept(Node.open(name)).defines) == (not back)


@pytest.mark.parametrize(("at", "before"), [("attach ingress", 2), ("RTM_NEWTFILTER *", 3)], ids=["step", "call"])
def test_killed_when_it_comes_again(at: str, before: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A call is seen before it happens, a step before its first call."""
    with lab() as name:
        document = upgraded(name, [*OTHER, "--at", at, "--nth", "3", "--back"], 0, capsys)
        assert (document["findings"], document["lost"]) == ([], 0)
        direction = "ingress" if at == "attach ingress" else ""
        attached = [c for c in calls_of(document, 0) if c.startswith("RTM_NEWTFILTER") and c.endswith(direction)]
        assert len(attached) == before


def test_the_nodes_of_a_cluster_go_there_one_by_one_and_back_in_the_other_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Or one of them alone."""
    with removed(unique_name()) as name, removed(f"{name}-1") as first, removed(f"{name}-2") as second:
        assert main(["up", name, "--nodes", "2", "--pods", "0"]) == 0
        capsys.readouterr()
        document = upgraded(name, [*OTHER, "--back"], 0, capsys)
        assert (document["findings"], document["lost"]) == ([], 0)
        to = "to our own C -D RENUMBERED_SLOTS=1 -D POLICY_VALUE_PAD=1"
        ways = list(dict.fromkeys(call["reload"] for call in document["calls"]))
        assert ways == [f"{first} {to}", f"{second} {to}", f"{second} back", f"{first} back"]
        document = upgraded(first, OTHER, 0, capsys)
        assert (document["findings"], document["lost"]) == ([], 0)
        assert {call["reload"] for call in document["calls"]} == {f"{first} {to}"}
        assert [len(Options.kept(Node.open(each)).defines) for each in (first, second)] == [2, 0]


def test_a_loader_that_is_not_ours_and_its_agent_are_both_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """The agent writes the object files, its loader attaches."""
    with lab() as name:
        document = upgraded(name, ["--to", PIPELINE], 0, capsys)
        assert (document["findings"], document["lost"], document["undecided"]) == ([], 0, "")
        calls = calls_of(document, 0)
        assert any(call.startswith("rename") and call.endswith("bpf_host.o") for call in calls)
        assert any(call.startswith("RTM_NEWTFILTER cilium_host ") for call in calls)


def test_nothing_goes_on_once_the_loader_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No new process of it loads the other pods before another agent begins."""
    loader, starts = tmp_path / "loader", tmp_path / "starts"
    loader.write_text(f"#!/bin/sh\necho $$ >> {starts}\nexec {PIPELINE}\n")
    loader.chmod(0o755)
    with lab(pods=2) as name:
        document = upgraded(name, ["--to", str(loader), "--at", "RTM_NEWTFILTER lxc*"], 0, capsys)
        # Two ways, each with a process that waits beside the agent's own.
        assert len(starts.read_text().split()) == 4
        killed, anew = (calls_of(document, way) for way in (0, 1))
        assert len([call for call in killed if call.startswith("RTM_NEWTFILTER lxc")]) == 1
        assert len([call for call in anew if call.startswith("RTM_NEWTFILTER lxc")]) > 2
        assert (document["findings"], document["lost"]) == ([], 0)


def test_a_process_that_the_loader_has_started_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """tc makes the call, and its loader says that it has failed; the agent ends as if that had died."""
    with lab() as name:
        main(["upgrade", name, "--to", "tc", "--at", "RTM_NEWTFILTER lxc*", "--json"])
        document = json.loads(capsys.readouterr().out)
        assert failures(document) == []
        assert len([call for call in calls_of(document, 0) if call.startswith("RTM_NEWTFILTER lxc")]) == 1
        assert calls_of(document, 1)


def test_a_loader_that_outlives_the_death_of_its_helper_is_no_place_that_did_not_come(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first upgrade has come to its end, and another agent begins anew all the same."""
    with lab() as name:
        loader = shlex.join(module_argv("tests.lab.loaders.hardy"))
        document = upgraded(name, ["--to", loader, "--at", f"unlink* *{FILE}"], 0, capsys)
        assert document["findings"] == []
        assert all(any(call.endswith(FILE) for call in calls_of(document, way)) for way in (0, 1))
        assert Options.kept(Node.open(name)).loader is not None


@NEEDS_TCX
def test_by_another_way_of_attaching_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    """From filters to tcx links of another loader, and from there to its filters and back."""
    with lab() as name:
        node = Node.open(name)
        document = upgraded(name, ["--to", PIPELINE, "--attach", "tcx"], 0, capsys)
        assert (document["findings"], document["lost"]) == ([], 0)
        assert document["calls"][0]["reload"] == f"{name} to our own C, python, attached by tcx"
        assert any(call.startswith("LINK_CREATE") for call in calls_of(document, 0))
        assert Options.kept(node).attach == Attachment.TCX
        document = upgraded(name, ["--to", "builtin", "--attach", "tc", "--back"], 0, capsys)
        assert (document["findings"], document["lost"]) == ([], 0)
        assert any(call.startswith("RTM_NEWTFILTER cilium_host ") for call in calls_of(document, 0))
        assert Options.kept(node).attach == Attachment.TCX


@NEEDS_TCX
def test_a_loader_without_tcx_takes_a_lab_that_has_it_by_tc(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the option, it is asked for what it does not do: a finding."""
    loader = shlex.join(module_argv("tests.lab.loaders.tconly"))
    with lab() as name:
        assert main(["reload", name, "--attach", "tcx"]) == 0
        capsys.readouterr()
        (said,) = failures(upgraded(name, ["--to", loader, "--back"], 1, capsys))
        assert said.endswith("not supported by loader pipeline: tcx")
        document = upgraded(name, ["--to", loader, "--attach", "tc"], 0, capsys)
        assert (document["findings"], document["lost"]) == ([], 0)


@NEEDS_TCX
def test_a_filter_that_is_left_beside_a_tcx_link_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that passes packets on leaves them to it: they are handled twice."""
    with lab() as name:
        loader = shlex.join(module_argv("tests.lab.loaders.leaving"))
        document = upgraded(name, ["--to", loader, "--attach", "tcx"], 1, capsys)
        ifname = Node.open(name).pod("pod-1").ifname
        found = [finding["what"] for finding in document["findings"] if finding["invariant"] == 1]
        assert any(f"{ifname} ingress: 2 programs instead of cil_from_container" in what for what in found), found


def test_what_a_loader_leaves_to_ours_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with lab() as name:
        loader = shlex.join(module_argv("tests.lab.loaders.podsonly"))
        document = upgraded(name, ["--to", loader], 0, capsys)
        assert gaps_of(document["gaps"]) == ["not supported by loader pipeline: host: loaded by the built-in loader"]
        assert any(call.startswith("RTM_NEWTFILTER cilium_host ") for call in calls_of(document, 0))


def test_the_agent_of_another_loader_is_killed_at_its_own_call(capsys: pytest.CaptureFixture[str]) -> None:
    with lab() as name:
        argv = ["--to", PIPELINE, "--at", "rename *bpf_host.o", "--back"]
        document = upgraded(name, argv, 0, capsys)
        assert calls_of(document, 0)[-2].endswith("bpf_host.o")
        assert (document["findings"], document["lost"]) == ([], 0)


@pytest.mark.parametrize("back", [[], ["--back"]], ids=["stay", "back"])
def test_what_does_not_compile_leaves_the_lab_its_policies(back: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The proof is told, and what failed in it."""
    with lab() as name:
        document = upgraded(name, ["--to", "builtin", "-D", "IPCACHE_MAP_SIZE=oops", *back], 1, capsys)
        node = Node.open(name)
        (said,) = failures(document)
        assert "failed to compile" in said
        assert len({call["reload"] for call in document["calls"]}) == 1 + len(back)
        assert document["findings"] == [finding for finding in document["findings"] if finding["what"] == said]
        assert enforcement.document_of(node) == POLICY
        assert Options.kept(node) == Options()
        with Agent(node) as agent:
            agent.reload("pod-1")


def test_a_loader_that_does_not_start_is_a_finding_and_leaves_the_lab_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = tmp_path / "loader"
    loader.write_text("#!/bin/sh\nexit 3\n")
    loader.chmod(0o755)
    with lab() as name:
        document = upgraded(name, ["--to", str(loader), "--back"], 1, capsys)
        (said,) = failures(document)
        assert said.startswith(f"{name} to our own C, loader failed: loader loader: ")
        # It never left, so that there is no way back.
        assert {call["reload"] for call in document["calls"]} == {f"{name} to our own C, loader"}
        assert enforcement.document_of(Node.open(name)) == POLICY
        assert Options.kept(Node.open(name)) == Options()
        assert main(["reload", name]) == 0


def test_a_place_that_does_not_come_is_a_finding_and_the_way_back_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with lab() as name:
        document = upgraded(name, [*OTHER, "--at", "MAP_CREATE no_such_map", "--back"], 1, capsys)
        (said,) = failures(document)
        assert "the upgrade has no step or call like MAP_CREATE no_such_map" in said
        assert calls_of(document, 1)
        assert Options.kept(Node.open(name)) == Options()


@dataclass(frozen=True)
class ReplacePin(Step):
    """Put another map in the place of a pinned one, with the same entries, and tell nobody."""

    name = "replace pin"

    def describe(self) -> str:
        return f"replace {self.target}"

    def apply(self, work: Workspace) -> None:
        path = work.config.globals / self.target
        with open_pin(path) as old:
            info, entries = old.info, list(old.items())
        assert info.type == MapType.HASH
        path.unlink()
        sizes = (info.key_size, info.value_size, info.max_entries)
        other = bpf.map_create(info.type, *sizes, flags=info.flags, name=info.name)
        bpf.obj_pin(other, path)
        os.close(other)
        with open_pin(path) as new:
            for key, value in entries:
                new.update(key, value)

    def undo(self, work: Workspace) -> None:
        """Leave it."""


def test_a_map_that_is_replaced_in_silence_is_found() -> None:
    """No reload says that it has replaced it."""
    with lab() as name:
        node = Node.open(name)
        change = before("attach ingress", ReplacePin("cilium_lxc"))

        def of_the_pod(plan: Plan) -> Plan:
            return change(plan) if plan.subject == "pod-1" else plan

        options = replace(Options.kept(node), defines=(("RENUMBERED_SLOTS", "1"),))
        proof = run_upgrade([node], Upgrade({name: options}, change=of_the_pod))
        assert any("cilium_lxc" in finding.violation.what for finding in proof.findings), proof.findings


def test_our_own_c_by_its_path_is_not_taken_for_that_of_others(tmp_path: Path) -> None:
    """The policy meanwhile lets no neighbour discovery in from the world, which other sources need."""
    seen = tmp_path / "policies.json"

    def look(plan: Plan) -> Plan:
        seen.write_text(json.dumps(enforcement.document_of(node)))
        return plan

    with lab() as name:
        node = Node.open(name)
        options = replace(Options.kept(node), library=str(LIBRARY))
        assert run_upgrade([node], Upgrade({name: options}, change=look)).holds
        assert '"family": "IPv6"' in seen.read_text()
        assert '"type": 135' not in seen.read_text()


@pytest.mark.parametrize("fresh", [True, False], ids=["new", "no-new"])
def test_maps_that_are_filled_too_late_are_found(fresh: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Packets that the policy lets pass are denied from the call on that brings the new programs.

    Connections that are known already go on; beside them there are new ones, if that is wanted.
    """
    with lab() as name:
        argv = [] if fresh else ["--no-new"]
        document = upgraded(name, [*OTHER, "--break", "fill-late", *argv], 1, capsys)
        assert document["lost"] > 0
        assert any(" new " in finding["what"] for finding in document["findings"]) == fresh
        lost = [finding for finding in document["findings"] if finding["invariant"] == 7]
        assert any("Policy denied" in finding["what"] for finding in lost)
        at = [document["calls"][finding["call"]]["call"] for finding in lost if finding["call"] is not None]
        assert at


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--nth", "2"], "--nth counts how often"),
        (["--to", "builtin"], "--to names one directory"),
        (["--at", "no such step"], "no step or call like no such step: `reloadlab plan`"),
        (["--at", "attach ingres"], "no step or call like attach ingres: is it attach ingress? "),
        (["--at", "RTM_NEWTFLTER *"], "no step or call like RTM_NEWTFLTER *: is it RTM_NEWTFILTER? "),
        (["--break", "keep-maps"], "--break keep-maps keeps the maps from a loader that is not ours"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    standing: str, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["upgrade", standing, "--to", "builtin", *argv], capsys)


def test_a_lab_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no lab nowhere" in refused(["upgrade", "nowhere", "--to", "builtin"], capsys)


def test_labs_of_no_cluster_are_one_line(standing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No packet gets from one to the other."""
    with lab() as other:
        said = refused(["upgrade", standing, other, "--to", "builtin"], capsys)
        assert f"{standing}, {other} are not of one cluster" in said
        assert enforcement.document_of(Node.open(standing)) == POLICY


def test_a_directory_that_there_is_not_is_one_line(
    standing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is done."""
    missing = tmp_path / "cilium-1.61" / "bpf"
    said = refused(["upgrade", standing, "--to", str(missing)], capsys)
    assert f"{missing} is no program that can be run" in said


def test_a_directory_does_not_hide_the_loader_of_its_name(
    standing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "builtin").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "no step or call like" in refused(["upgrade", standing, "--to", "builtin", "--at", "no such"], capsys)

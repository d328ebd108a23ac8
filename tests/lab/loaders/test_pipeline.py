"""Our own pipeline as a process of its own: whole scenarios hold through the seam."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from datapath.endpoint import Attachment
from datapath.errors import Cancelled
from datapath.reload.outcome import Outcome
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.loaders.command import LoaderCommand
from lab.loaders.protocol import Done, LoaderFailed, NotSupported
from lab.node.topology import HOST, NodeSpec
from lab.node.view import look as show
from lab.scenario.gate import Gate
from lab.scenario.scenario import Scenario
from lab.system.launch import module_argv
from lab.watch.checks.generation import check_generation
from lab.watch.snapshot import take
from tests.datapath.support import NEEDS_TCX

PIPELINE = LoaderCommand("ours", tuple(module_argv("lab.loaders.pipeline")))
FILELESS = LoaderCommand("fileless", tuple(module_argv("tests.lab.loaders.fileless")))
LASTING = LoaderCommand("lasting", tuple(module_argv("tests.lab.loaders.lasting")))


def steps(outcome: Outcome) -> list[str]:
    return [span.step for span in outcome.spans]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled templates of all nodes here."""
    return tmp_path_factory.mktemp("templates")


def test_reloads_by_a_process_lose_no_packet(templates: Path) -> None:
    """A pod, the host with a device and the overlay, one after the other and by workers, and the removal of a pod."""
    spec = NodeSpec("seam-hitless", pods=1, devices=("eth0",), tunnel=True)
    with Scenario(spec, loader=PIPELINE, templates=templates) as scenario:
        external = scenario.agent.external
        assert external is not None
        pid = external.pid
        outcomes = [outcome for subject in scenario.agent.subjects for outcome in scenario.reload(subject)]
        assert {steps(outcome)[-1] for outcome in outcomes} == {"load by pipeline"}
        # Pieces of work that the loader tells of.
        assert all(outcome.spans[-1].helpers for outcome in outcomes)
        assert [each.ifname for each in outcomes[0].attached] == [*2 * ["cilium_host"], "cilium_net", *2 * ["eth0"]]
        assert all(loaded.arrays and loaded.slots for outcome in outcomes for loaded in outcome.loaded)
        scenario.set_endpoint_routes(True)
        scenario.agent.add_pod("more")
        scenario.agent.remove_pod("more")
        # Workers had processes of their own.
        assert (external.pid, scenario.agent.not_supported) == (pid, {})


def test_a_new_pod_is_down_until_the_process_has_attached_its_programs(templates: Path) -> None:
    """Before, nothing would check what it sends; to load them takes another loader seconds."""
    with Scenario(NodeSpec("seam-new", pods=1), loader=PIPELINE, templates=templates) as scenario:
        agent, node = scenario.agent, scenario.node
        up: dict[str, bool] = {}

        def look(step: Step, work: Workspace) -> None:
            up[step.name] = {link.name: link.up for link in show(node).links}[node.pod("late").ifname]

        node.add_pod("late", loaded=False)
        agent.sync()
        outcome, *_ = scenario.reload("late", gate=Gate(look, before="*"))
        assert steps(outcome)[-2:] == ["load by pipeline", "set up"]
        assert up.keys() >= {"create maps", "load by pipeline", "set up"}
        assert not any(up.values())
        assert {link.name: link.up for link in show(node).links}[node.pod("late").ifname]
        agent.remove_pod("late")


def test_a_reload_that_fails_in_the_process_leaves_everything_as_it_was(templates: Path) -> None:
    with Scenario(NodeSpec("seam-fails", pods=1), loader=PIPELINE, templates=templates) as scenario:
        scenario.define(REJECTED_BY_VERIFIER="1")
        for subject in ("pod-1", HOST):
            error = scenario.reload_fails(subject, LoaderFailed)
            assert "loader pipeline: program tail_rejected_by_verifier" in str(error)
        scenario.define()
        scenario.reload("pod-1", HOST)


def test_what_is_loaded_without_an_object_file_is_compared_with_none(templates: Path) -> None:
    """A file that another loader has left says nothing; that no file was asked for is a gap."""
    with Scenario(NodeSpec("seam-fileless", pods=1), loader=FILELESS, templates=templates) as scenario:
        scenario.reload("pod-1", HOST)
        stale = scenario.agent.config.state / str(scenario.node.pod("pod-1").endpoint_id) / "bpf_lxc.o"
        assert not stale.exists()
        stale.write_bytes(b"of another release")
    assert any("object files" in gap for gap in scenario.gaps)
    assert not any("macros" in gap for gap in (*scenario.gaps, *scenario.agent.not_supported))


def test_a_removal_that_is_not_supported_changes_nothing(templates: Path) -> None:
    """The pod is not marked as one that is being removed: others go on to deliver to it."""
    with Scenario(NodeSpec("seam-lasting", pods=1), rate=0, loader=LASTING, templates=templates) as scenario:
        with pytest.raises(NotSupported, match="the removal of a pod's programs"):
            scenario.agent.remove_pod("pod-1")
        assert scenario.node.facts.unloaded == ()
        scenario.agent.sync()


def test_what_was_loaded_is_read_from_the_kernel(templates: Path) -> None:
    """The checks compare it with what is there at the end; and nothing is put into a plan that is not ours."""
    with Scenario(NodeSpec("seam-read", pods=1), loader=PIPELINE, templates=templates) as scenario:
        before = take(scenario.node)
        (honest,) = scenario.reload("pod-1")
        after = take(scenario.node)
        assert {each.program_id for each in honest.attached} <= after.programs - before.programs
        assert list(check_generation(scenario.agent, before, after, [honest])) == []
        # As if it had claimed one more reload, with the calls map of the one before.
        assert any(
            "uses the calls map" in str(v) for v in check_generation(scenario.agent, before, after, 2 * [honest])
        )

        scenario.agent.change = lambda plan: plan
        scenario.reload("pod-1")
        scenario.agent.change = lambda plan: plan.change(lambda step: step if step.name != "commit" else None)
        with pytest.raises(NotSupported, match="not supported by loader pipeline: a fault"):
            scenario.reload("pod-1")
        scenario.agent.change = None


@NEEDS_TCX
def test_how_a_program_is_attached_is_read_from_the_kernel(templates: Path) -> None:
    """The way from tc to tcx leaves a hook without filters: no rule may take it for empty."""
    with Scenario(NodeSpec("seam-tcx", pods=1), rate=0, loader=PIPELINE, templates=templates) as scenario:
        for attach in (Attachment.TCX, Attachment.TC):
            scenario.agent.configure(attach=attach)
            (outcome,) = scenario.reload("pod-1")
            assert {each.attachment for each in outcome.attached} == {attach}


def test_a_reload_is_cancelled_in_the_process(templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C while it loads: it undoes what it has done, and is started anew."""
    with Scenario(NodeSpec("seam-cancel", pods=1), loader=PIPELINE, templates=templates) as scenario:
        external, cancel = scenario.agent.external, threading.Event()
        assert external is not None
        ask = external.ask

        def cancelled(request: Mapping[str, Any], *, cancel: threading.Event | None = None) -> Done:
            assert cancel is not None
            cancel.set()
            return ask(request, cancel=cancel)

        monkeypatch.setattr(external, "ask", cancelled)
        scenario.reload_fails("pod-1", Cancelled, cancel=cancel)
        monkeypatch.undo()
        scenario.reload("pod-1")

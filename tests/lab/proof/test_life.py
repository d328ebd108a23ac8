"""The life of a node: whatever fails or dies while it is built, changed or removed, the next command puts it right."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.endpoint import Attachment
from datapath.errors import Cancelled
from datapath.kernel import bpf
from lab.errors import LabNotFound
from lab.loaders.command import find_loader
from lab.node import registry
from lab.node.topology import NodeSpec
from lab.proof import belongings
from lab.proof.belongings import Belongings
from lab.proof.cases import KILL, Case, Faults, Place
from lab.proof.errnos import first_errno_of
from lab.proof.life import Agents, Life, NoSuchStage, Stage, stages, sweep_life
from tests.datapath.support import NEEDS_TCX

FAULTS = Faults(first_errno_of)


def one(cases: Sequence[Case]) -> Sequence[Case]:
    """Choose a kill of one stage, a failure of the next."""
    return [cases[len(cases) * 2 // 3]]


@pytest.mark.privileged
@pytest.mark.parametrize("attach", [Attachment.TC, pytest.param(Attachment.TCX, marks=NEEDS_TCX)])
def test_a_sample_of_the_cases_is_survived(attach: Attachment) -> None:
    """One of each stage, of 2600: all of them are `make faults`."""
    result = sweep_life(NodeSpec("life", pods=1), stages([], []), faults=FAULTS, choose=one, attach=attach)
    assert [(case.title, case.ended, case.wrong) for case in result.cases if not case.survived] == []
    assert result.holds
    assert len(result.cases) == 5
    # Other tests have labs of their own meanwhile.
    assert "life" not in {lab.name for lab in registry.list_labs()}


@pytest.mark.privileged
def test_a_loader_that_is_not_ours_is_killed_in_the_life_of_a_node() -> None:
    """Where it takes the programs of a pod away: the next removal does the rest."""

    def choose(cases: Sequence[Case]) -> Sequence[Case]:
        return [case for case in cases if case.place.fits("RTM_DELTFILTER *") and case.fault == KILL][:1]

    spec = NodeSpec("life-loader", pods=1)
    result = sweep_life(spec, stages(["pod-removed"], []), faults=FAULTS, choose=choose, loader=find_loader("tc"))
    (case,) = result.cases
    assert (case.ended, case.wrong) == ("killed", [])


@pytest.mark.privileged
def test_what_is_not_put_right_is_told() -> None:
    """A command that is of no use behind one that was killed, and one whose call does not come."""
    tries: list[int] = []

    def do(spec: NodeSpec, templates: object, cancel: object) -> None:
        registry.run_directory().mkdir(exist_ok=True)
        tries.append(1)
        if len(tries) == 3:
            raise LabNotFound(spec.name, ())

    def choose(cases: Sequence[Case]) -> list[Case]:
        return [cases[0], Case("odd", Place("rmdir *", 1), "EIO")]

    result = sweep_life(NodeSpec("life-odd", pods=1), [Stage("odd", do, lives=False)], faults=FAULTS, choose=choose)
    assert not result.holds
    assert [case.survived for case in result.cases] == [False, False]
    assert result.cases[1].ended == "not reached"


@pytest.mark.privileged
def test_a_process_that_dies_of_an_error_has_not_survived() -> None:
    here = os.getpid()

    def do(spec: NodeSpec, templates: object, cancel: object) -> None:
        directory = registry.run_directory() / "life-crash-made"
        directory.parent.mkdir(exist_ok=True)
        try:
            directory.mkdir(exist_ok=True)
            directory.rmdir()
        except OSError:
            if os.getpid() != here:
                os._exit(3)
            raise

    def choose(cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if case.place.fits("mkdir *life-crash-made")]

    result = sweep_life(NodeSpec("life-crash", pods=1), [Stage("made", do, lives=False)], faults=FAULTS, choose=choose)
    failed, killed = result.cases
    assert "exited with status 3" in failed.ended
    assert any("exited with status 3" in what for what in failed.wrong)
    assert killed.ended == "killed"


@pytest.mark.privileged
def test_a_lab_that_cannot_be_removed_is_told_and_the_rest_goes_on() -> None:
    """The case that leaves it, and those behind it that cannot begin, until it can be removed again."""
    spec = NodeSpec("life-stuck", pods=1)
    root, here, begun = registry.lab_root(spec.name), os.getpid(), list[int]()

    def do(spec: NodeSpec, templates: object, cancel: object) -> None:
        directory = registry.run_directory() / "life-stuck-made"
        directory.parent.mkdir(exist_ok=True)
        try:
            directory.mkdir()
        except OSError:
            if os.getpid() != here:
                # No lab: it has no mark.
                root.mkdir()
            raise
        directory.rmdir()

    def choose(cases: Sequence[Case]) -> list[Case]:
        (case,) = [case for case in cases if case.place.fits("mkdir *life-stuck-made")]
        return [case, replace(case, wrong=[]), replace(case, wrong=[])]

    def on_case(case: Case) -> None:
        begun.append(1)
        if len(begun) == 2:
            root.rmdir()

    stage, faults = Stage("made", do, lives=False), Faults(first_errno_of, kill=False)
    result = sweep_life(spec, [stage], faults=faults, choose=choose, on_case=on_case)
    root.rmdir()
    refused = f"{root} is not a lab: reloadlab leaves it alone; choose another name"
    first, second, third = (case.wrong for case in result.cases)
    assert {f"its lab cannot be removed: {refused}", f"{root} is left over"} <= {*first} & {*third}
    assert second == [f"it could not begin: {refused}", f"{root} is left over"]
    assert [case.ended.partition(":")[0] for case in result.cases] == ["failed", "not reached", "failed"]


@pytest.mark.privileged
def test_what_a_removed_lab_leaves_in_the_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that somebody holds, as a process would that was left over, and a namespace."""
    monkeypatch.setattr(belongings, "_SECONDS", 0.5)
    spec, here = NodeSpec("life-held", pods=1), os.getpid()
    root, held = registry.lab_root(spec.name), list[int]()

    def do(spec: NodeSpec, templates: object, cancel: object) -> None:
        (root / "state" / "begun").touch()
        if os.getpid() == here:
            held.append(bpf.obj_get(root / registry.BPFFS / "tc" / "globals" / "cilium_lxc"))
            held.append(os.open(root / registry.NAMESPACES / "pod-1", os.O_RDONLY))

    def choose(cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if case.place.fits("openat */state/begun")]

    faults = Faults(first_errno_of, kill=False)
    result = sweep_life(spec, [Stage("held", do)], faults=faults, choose=choose)
    ident, namespace = bpf.map_info(held[0]).id, os.fstat(held[1]).st_ino
    for descriptor in held:
        os.close(descriptor)
    (case,) = result.cases
    assert case.wrong == [f"namespace {namespace} is held open", f"map {ident} is left over"]


@pytest.mark.privileged
@pytest.mark.parametrize("cancelled", [False, True])
def test_what_many_labs_leave_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """And not at all after Ctrl-C."""
    monkeypatch.setattr(belongings, "_SECONDS", 600.0 if cancelled else 0.5)
    cancel = threading.Event()
    life = Life(NodeSpec("life-leaking"), Agents(tmp_path), cancel)
    cases = [Case("up", Place("x", 1), KILL) for _ in range(40)]
    held = bpf.map_create(MapType.ARRAY, 4, 4, 1, name="held")
    ident = bpf.map_info(held).id
    life._gone = [(case, Belongings(maps=frozenset({ident}))) for case in cases]
    begun = time.monotonic()
    if cancelled:
        cancel.set()
        with pytest.raises(Cancelled):
            life.conclude()
    else:
        life.conclude()
        assert all(case.wrong == [f"map {ident} is left over"] for case in cases)
    os.close(held)
    assert time.monotonic() - begun < 10


def test_a_stage_that_there_is_not() -> None:
    with pytest.raises(NoSuchStage, match="no stage upp in the life of a node; there are up, policy, "):
        stages(["upp"], [])

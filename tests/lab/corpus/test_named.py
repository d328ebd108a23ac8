"""The named faults: each is real, changes something, and is noticed; what is left out has a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.reload.plans import host_plan, overlay_plan, pod_plan, xdp_plan
from datapath.reload.prepare import LoadPrograms
from datapath.reload.step import Plan
from datapath.reload.switchover import Attach, Commit, Detach, InsertPolicy
from lab.corpus import loaders, named
from lab.corpus.fault import Fault
from lab.corpus.named_plans import moved_before
from lab.node.topology import NodeSpec
from lab.scenario.scenario import Scenario
from lab.scenario.verdict import InvariantsViolated
from scenarios import test_filters, test_pods, test_restart
from tests.datapath.reload.test_plans import CONFIG, HOST, LINKS, POD
from tests.lab.labs import ROOT, unique_name

ENTRIES = frozenset(f"B{number}" for number in range(1, 35))
"""The list of bugs of Cilium's from which the named faults are taken."""

FAULTS = {fault.name: fault for fault in named.FAULTS}


def plans() -> list[Plan]:
    """Return the plans of a pod in both modes, of the host with devices, one gone, of the overlay and of XDP."""
    config = replace(CONFIG, devices=("eth0", "eth1"))
    host = host_plan(config, HOST, LINKS, subject="host")
    gone = (Path("/bpf/tc/globals/cilium_calls_netdev_00099"),)
    return [
        pod_plan(config, POD, subject="pod-1"),
        pod_plan(config, POD.with_endpoint_routes(True), subject="pod-1"),
        host.change(lambda step: replace(step, obsolete=gone) if isinstance(step, Commit) else step),
        overlay_plan(config, 7),
        xdp_plan(replace(config, xdp="native"), 7, LINKS),
    ]


def entry(name: str) -> str | None:
    """Return the number of the entry that a fault is for, None for a bug of our own."""
    match = re.match(r"B\d+(?=-)", name)
    return match[0] if match is not None else None


def test_every_entry_is_a_fault_or_has_a_reason() -> None:
    present = {number for fault in (*named.FAULTS, *loaders.FAULTS) if (number := entry(fault.name)) is not None}
    assert present | named.NOT_YET.keys() == ENTRIES
    assert not present & named.NOT_YET.keys()


def test_what_is_left_out_is_documented() -> None:
    text = (ROOT / "docs/corpus.md").read_text()
    rows = re.findall(r"^\| (B\d+) \| (.+) \|$", text, re.MULTILINE)
    assert dict(rows) == named.NOT_YET


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_is_told_in_a_line_that_says_where_it_was_real(fault: Fault) -> None:
    assert fault.kind == "named"
    assert fault.what
    assert "\n" not in fault.what
    assert fault.cites
    assert entry(fault.name) is None or fault.cites[0].startswith("cilium issue ")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_hints_name_scenarios(fault: Fault) -> None:
    files = sorted((ROOT / "scenarios").glob("test_*.py"))
    known = [f"{file.name}::{test}" for file in files for test in re.findall(r"def (test_\w+)", file.read_text())]
    assert fault.only
    assert [hint for hint in fault.only if not any(hint in name for name in known)] == []


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS.values() if fault.change is not None], ids=lambda fault: fault.name
)
def test_a_faulty_plan_differs(fault: Fault) -> None:
    """One of pod, host, overlay or XDP; every plan can still be described."""
    assert fault.change is not None
    changed = [(plan, fault.change(plan)) for plan in plans()]
    assert any(old != new for old, new in changed)
    assert all(new.describe() for _, new in changed)


def test_a_step_is_moved() -> None:
    off, on, _, overlay, _ = plans()
    early = moved_before(off, Detach, lambda _, other: isinstance(other, LoadPrograms))
    names = [step.name for step in early.steps]
    assert names[names.index("detach egress") + 1] == "load programs"
    late = moved_before(on, InsertPolicy, lambda _, other: isinstance(other, Commit))
    assert isinstance(late.steps[-2], InsertPolicy)
    assert sum(isinstance(step, Attach) for step in late.steps) == 2
    assert moved_before(overlay, InsertPolicy, lambda *_: True) == overlay


Body = Callable[[Scenario], None]
"""What a scenario does."""

NOTICED: list[tuple[str, Body, str]] = [
    ("B17-filters-of-two-priorities", lambda s: test_filters.test_priority_is_changed(s, ""), "{1, 2}"),
    ("B9-sweep-before-restore", lambda s: test_restart.test_started_again(s, ""), "Missed tail call"),
    ("B16-teardown-slot-first", lambda s: test_pods.test_packets_to_a_pod_that_comes_and_goes(s, ""), "140"),
    ("B24-unload-by-name", lambda s: test_pods.test_deletion_of_a_former_pod_comes_late(s, ""), "answered=0"),
]
"""Faults of a plan, of an agent, and of a loader, each with a scenario that notices it, and by what."""


@pytest.mark.privileged
@pytest.mark.parametrize(("name", "body", "text"), NOTICED, ids=[row[0] for row in NOTICED])
def test_is_noticed(name: str, body: Body, text: str) -> None:
    """The same scenario without the fault is among those that pass."""
    seen: list[str] = []
    scenario = Scenario(NodeSpec(unique_name("named"), pods=2), policy=None)
    with scenario:
        FAULTS[name].put_into(scenario.agent, lambda: seen.append(name))
        with pytest.raises((InvariantsViolated, AssertionError), match=text):
            _run(scenario, body)
    assert seen


def _run(scenario: Scenario, body: Body) -> None:
    """Run what a scenario does, and its checks."""
    try:
        body(scenario)
    finally:
        scenario.abandon()
    scenario.finish()

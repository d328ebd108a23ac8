"""The plugin in the hands of somebody else: a suite of his own, in a directory of its own, run by his own pytest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bpf import LIBRARY
from lab.node import registry

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "no:cacheprovider", "-p", "reloadlab.short_names")

SUITE = """
import pytest
from datapath.kernel.hooks import Direction, detach, filters
from datapath.kernel.netlink import NetlinkSocket

@pytest.mark.node(pods=1, endpoint_routes=True)
def test_good(scenario):
    scenario.reload("pod-1", "host")
    assert scenario.node.name.startswith("good-")

@pytest.mark.node(pods=1, agent={"filter_priority": 7})
def test_options(scenario):
    assert scenario.agent.config.filter_priority == 7

@pytest.mark.node(pods=1)
def test_broken(scenario):
    with NetlinkSocket(scenario.node.netns("node")) as netlink:
        (ours,) = filters(netlink, scenario.node.pods[0].ifindex, Direction.INGRESS)
        detach(netlink, ours)

@pytest.mark.node(pods=1)
def test_fails_by_itself(scenario):
    assert 1 == 2

@pytest.mark.skip(reason="not today")
def test_skipped(scenario):
    pass

def test_without_a_node():
    pass
"""


@pytest.fixture
def records(pytester: pytest.Pytester, tmp_path: Path) -> Path:
    pytester.makepyfile(test_mine=SUITE)
    return tmp_path


@pytest.mark.privileged
def test_suite_of_a_user(pytester: pytest.Pytester, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(f"/run/reloadlab-test-{records.name}-{id(records):x}")
    monkeypatch.setenv(registry.RUN_VARIABLE, str(run))
    options = (*PLUGIN, "--reloadlab-record", str(records))
    result = pytester.runpytest_subprocess("--strict-markers", *options, timeout=60)
    result.assert_outcomes(passed=3, failed=2, skipped=1)
    assert not run.exists()
    result.stdout.fnmatch_lines(["*invariant 1: lxc* ingress: 0 programs instead of cil_from_container: none"])
    found = {record["name"].partition("::")[2]: record for record in map(read, records.glob("*.json"))}
    outcomes = {name: record["outcome"] for name, record in found.items()}
    assert outcomes == {
        "test_good": "passed",
        "test_options": "passed",
        "test_broken": "failed",
        "test_fails_by_itself": "failed",
        "test_skipped": "skipped",
        "test_without_a_node": "passed",
    }
    assert [reload["subject"] for reload in found["test_good"]["reloads"]] == ["pod-1", "host"]
    assert found["test_good"]["sent"] > 0
    assert found["test_good"]["lost"] == 0
    assert found["test_good"]["violations"] == []
    assert any(text.startswith("invariant 1: ") for text in found["test_broken"]["violations"])
    assert "InvariantsViolated" in found["test_broken"]["message"]
    # What is checked at the end would only hide why this one failed.
    assert "assert 1 == 2" in found["test_fails_by_itself"]["message"]
    assert found["test_fails_by_itself"]["violations"] == []


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_marks_are_declared(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--markers", *PLUGIN)
    result.stdout.fnmatch_lines(["@pytest.mark.node(*", "@pytest.mark.own_sources: *", "@pytest.mark.privileged: *"])


OTHER_SOURCES = """
import pytest
from pathlib import Path

@pytest.mark.node(pods=1, agent={"defines": (("POLICY_MAP_SIZE", "128"),)})
def test_built_from_them(scenario):
    config = scenario.agent.config
    assert config.library == Path("LIBRARY")
    assert config.defines == (("CT_MAP_SIZE_TCP", "256"), ("POLICY_MAP_SIZE", "128"))
    scenario.define(POLICY_MAP_SIZE="64")
    assert scenario.agent.config.defines == (*config.defines, ("POLICY_MAP_SIZE", "64"))
    scenario.define()
    assert scenario.agent.config.defines == config.defines

@pytest.mark.own_sources
@pytest.mark.node(pods=1)
def test_ours(scenario):
    pass
"""


@pytest.mark.privileged
def test_other_sources(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """A copy of ours stands for those of somebody else."""
    library = shutil.copytree(LIBRARY, tmp_path / "bpf")
    pytester.makepyfile(test_theirs=OTHER_SOURCES.replace("LIBRARY", str(library)))
    options = ("--reloadlab-library", str(library), "--reloadlab-define", "CT_MAP_SIZE_TCP=256")
    result = pytester.runpytest_subprocess(*PLUGIN, *options, timeout=60)
    result.assert_outcomes(passed=1, skipped=1)

"""The plugin in the hands of somebody else: a suite of his own, in a directory of its own, run by his own pytest."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from bpf import LIBRARY
from lab.node import registry
from lab.system.launch import module_argv
from tests.nested import SHORT_NAMES

pytest_plugins = ["pytester"]

SUITE = """
import gc
import pytest
from datapath.kernel.hooks import Direction, detach, filters
from datapath.kernel.netlink import NetlinkSocket
from lab.scenario.watched import Watched

@pytest.mark.node(pods=1, endpoint_routes=True)
def test_good(scenario):
    scenario.reload("pod-1", "host")
    assert scenario.node.name.startswith("good-")

@pytest.mark.node(pods=1, agent={"filter_priority": 7})
def test_options(scenario):
    assert scenario.agent.config.filter_priority == 7
    # What others have seen is gone: a suite would grow with each.
    gc.collect()
    assert [each for each in gc.get_objects() if isinstance(each, Watched)] == [scenario]

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
    options = (*SHORT_NAMES, "--reloadlab-record", str(records))
    result = pytester.runpytest_subprocess("--strict-markers", *options, timeout=150)
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
    message = found["test_broken"]["message"]
    title, *lines = message.splitlines()
    assert title == "invariants violated:"
    told = [line.strip() for line in lines if not line.endswith(" more")]
    assert told
    assert set(told) <= set(found["test_broken"]["violations"])
    # What is checked at the end would only hide why this one failed.
    assert "assert 1 == 2" in found["test_fails_by_itself"]["message"]
    assert found["test_fails_by_itself"]["violations"] == []
    unchecked = "packets and invariants: the test had failed before"
    assert {name: record["gaps"].count(unchecked) for name, record in found.items()} == {
        name: int(name == "test_fails_by_itself") for name in outcomes
    }


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_marks_are_declared(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--markers", *SHORT_NAMES)
    marks = ("node(*", "cluster(*", "own_sources(*", "own_loader(*", "privileged: *")
    result.stdout.fnmatch_lines([f"@pytest.mark.{mark}" for mark in marks])


OTHER_LOADER = """
import pytest
from lab.node.topology import HOST
from lab.scenario.gate import Gate
from datapath.errors import ReloadlabError

pytestmark = pytest.mark.node(pods=1)

def test_a_pod(scenario):
    assert scenario.agent.external.supports("pod")
    scenario.reload("pod-1")

def test_the_host(scenario):
    scenario.reload(HOST)

@pytest.mark.node(endpoint_routes=True)
def test_routes(scenario):
    pass

def test_removal(scenario):
    with pytest.raises(ReloadlabError):
        scenario.agent.remove_pod("pod-1")

def test_a_step(scenario):
    scenario.reload("pod-1", gate=Gate(lambda *_: None, before="commit"))

def test_a_failure(scenario):
    scenario.reload_fails("pod-1", ReloadlabError)

@pytest.mark.own_loader
def test_ours(scenario):
    pass

@pytest.mark.own_loader("theirs fill maps later")
def test_maps(scenario):
    pass

@pytest.mark.node(agent={"loader": "builtin"})
def test_the_command_line_wins(scenario):
    assert scenario.agent.external is not None
"""

PODS_ALONE = """
from reloadlab.home import enter
enter(first=True)
from lab.loaders import pipeline
pipeline.Pipeline.supports = ("pod",)
pipeline.main()
"""


@pytest.mark.privileged
def test_other_loader(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """What a loader does not do is skipped, or done by ours, and told; also where a test does not mind the refusal."""
    pytester.makepyfile(test_theirs=OTHER_LOADER)
    loader, record = tmp_path / "loader.py", tmp_path / "record"
    loader.write_text(PODS_ALONE)
    pytester.makepyprojecttoml(f"[tool.reloadlab.loaders]\ntheirs = {json.dumps([sys.executable, '-P', str(loader)])}")
    options = ("--reloadlab-loader", "theirs", "--reloadlab-record", str(record))
    result = pytester.runpytest_subprocess(*SHORT_NAMES, *options, "-rs", timeout=50)
    result.assert_outcomes(passed=3, skipped=6)
    refused = ("endpoint routes", "the removal of a pod's programs", "gates at our own steps", "the old state after *")
    reasons = [f"*not supported by loader pipeline: {what}" for what in refused]
    result.stdout.fnmatch_lines_random([*reasons, "*steps that only our own loader has", "*theirs fill maps later"])
    gaps = {found["name"].partition("::")[2]: found["gaps"] for found in map(read, record.glob("*.json"))}
    assert "not supported by loader pipeline: host: loaded by the built-in loader" in gaps["test_the_host"]


MACROS = """
import pytest

@pytest.mark.node(pods=1, agent={"defines": (("ENABLE_IPV4_FRAGMENTS", "1"),)})
def test_fragments(scenario):
    pass

@pytest.mark.node(pods=1, agent={"defines": (("ENABLE_HOST_FIREWALL", "1"),)})
def test_firewall(scenario):
    pass

def test_others(scenario):
    pass
"""


@pytest.mark.privileged
def test_macros_that_a_loader_does_not_compile(pytester: pytest.Pytester) -> None:
    """What a scenario is about is not there without those of its mark; those of the command line are only told."""
    pytester.makepyfile(test_macros=MACROS)
    loader = shlex.join(module_argv("tests.lab.loaders.compiling"))
    options = ("--reloadlab-loader", loader, "--reloadlab-define", "POLICY_MAP_SIZE=4096")
    result = pytester.runpytest_subprocess(*SHORT_NAMES, *options, "-rs", timeout=100)
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*not supported by loader *: ENABLE_IPV4_FRAGMENTS: it compiles by itself"])


@pytest.mark.parametrize("loader", ["no-such-loader", "'"])
def test_a_wrong_loader_is_a_wrong_call(pytester: pytest.Pytester, loader: str) -> None:
    pytester.makepyfile(test_theirs="def test_nothing(): pass")
    result = pytester.runpytest_subprocess(*SHORT_NAMES, "--reloadlab-loader", loader)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in result.errlines if line.startswith("ERROR: ")]) == 1


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
    scenario.leave_out("an answer that theirs do not promise")

@pytest.mark.own_sources
@pytest.mark.node(pods=1)
def test_ours(scenario):
    pass

@pytest.mark.own_sources("theirs count otherwise")
@pytest.mark.node(pods=1)
def test_counters(scenario):
    pass
"""


@pytest.mark.privileged
def test_other_sources(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """A copy of ours stands for those of somebody else."""
    library = shutil.copytree(LIBRARY, tmp_path / "bpf")
    pytester.makepyfile(test_theirs=OTHER_SOURCES.replace("LIBRARY", str(library)))
    record = tmp_path / "record"
    defined = ("--reloadlab-library", str(library), "--reloadlab-define", "CT_MAP_SIZE_TCP=256")
    options = (*defined, "--reloadlab-record", str(record))
    result = pytester.runpytest_subprocess(*SHORT_NAMES, *options, "-rs", timeout=150)
    result.assert_outcomes(passed=1, skipped=2)
    reasons = ["*needs macros that only our own C knows", "*theirs count otherwise"]
    result.stdout.fnmatch_lines_random(reasons)
    gaps = [gap for path in record.glob("*.json") for gap in json.loads(path.read_text()).get("gaps", ())]
    assert gaps == ["an answer that theirs do not promise"]


SPOILT = """
import unittest
import pytest
from datapath.kernel.hooks import Direction, detach, filters
from datapath.kernel.netlink import NetlinkSocket

pytestmark = [pytest.mark.node(pods=0), pytest.mark.cluster(nodes=1, pods=0)]

def spoil(node):
    with NetlinkSocket(node.netns("node")) as netlink:
        (ours,) = filters(netlink, node.facts.health.ifindex, Direction.INGRESS)
        detach(netlink, ours)

def test_first_of_two(scenario, cluster):
    scenario.reload("health")
    cluster.reload("1/host")
    spoil(scenario.node)

def test_second_of_two(scenario, cluster):
    spoil(cluster.cluster.node(1))

class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def node(self, scenario):
        self.scenario = scenario

    def test_of_unittest(self):
        spoil(self.scenario.node)
"""


def records_of(pytester: pytest.Pytester, suite: str) -> dict[str, dict[str, Any]]:
    """Run a suite and return its records by the name of the test."""
    pytester.makepyfile(test_mine=suite)
    pytester.runpytest_subprocess(*SHORT_NAMES, "--reloadlab-record", "records", timeout=170)
    records = map(read, (pytester.path / "records").glob("*.json"))
    return {record["name"].rpartition("::")[2]: record for record in records}


@pytest.mark.privileged
def test_all_that_a_test_asked_for_is_checked(pytester: pytest.Pytester) -> None:
    """However it is written: nothing calls the hook around a test function for a unittest.TestCase."""
    found = records_of(pytester, SPOILT)
    outcomes = {name: record["outcome"] for name, record in found.items()}
    assert outcomes == {"test_first_of_two": "failed", "test_second_of_two": "failed", "test_of_unittest": "error"}
    for record in found.values():
        # The traffic, which finds more wrong than this, is no part of the rule.
        (violation,) = (text for text in record["violations"] if text.startswith("invariant 1:"))
        assert "ingress: 0 programs instead of cil_from_container: none" in violation
        assert record["message"].splitlines()[:2] == ["invariants violated:", f"  {violation}"]
    assert [reload["subject"] for reload in found["test_first_of_two"]["reloads"]] == ["health", "host"]


PAUSED_AND_WARNED = """
import pytest
from pathlib import Path

@pytest.mark.node(pods=0)
def test_日本(scenario):
    scenario.pause()
    scenario.pause()
    Path("sent").write_text(str(scenario.sent))
    scenario.resume()
    with pytest.raises(Exception, match="the traffic is not paused"):
        scenario.resume()
    assert all(burst.complete for burst in scenario.traffic.burst_all(2))

@pytest.mark.cluster(nodes=2, pods=0)
def test_nodes_without_pods(cluster):
    cluster.reload("1/health")

@pytest.mark.node(pods=1)
@pytest.mark.parametrize("expected", [None, "connections do not fit", "device eth7 does not exist"])
def test_warns(scenario, expected):
    if expected:
        scenario.expect(warnings={expected})
    scenario.agent.configure(devices=("eth7",))
    scenario.agent.reload("host")
    scenario.agent.configure(devices=())
"""


@pytest.mark.privileged
def test_pauses_and_warnings_count(pytester: pytest.Pytester) -> None:
    """And a node needs no pods, a test no letters of ASCII in its name."""
    found = records_of(pytester, PAUSED_AND_WARNED)
    assert {name: record["outcome"] for name, record in found.items()} == {
        "test_日本": "passed",
        "test_nodes_without_pods": "passed",
        "test_warns[None]": "failed",
        "test_warns[connections do not fit]": "failed",
        "test_warns[device eth7 does not exist]": "passed",
    }, [record["message"] for record in found.values()]
    assert found["test_日本"]["sent"] > int((pytester.path / "sent").read_text()) > 0
    for name in ("test_warns[None]", "test_warns[connections do not fit]"):
        wanted = "invariant 11: reload of host warns: device eth7 does not exist: left out"
        assert found[name]["violations"] == [wanted]


ERRORS = """
import pytest
from datapath.errors import VerifierError
from lab.node.topology import NodeSpec

@pytest.mark.node(podz=1)
def test_wrong_mark(scenario):
    pass

@pytest.mark.node(pods=1, agent={"library": "no-such-directory"})
def test_wrong_library(scenario):
    pass

def test_in_a_line_of_the_suite():
    try:
        raise ValueError("the " "cause")
    except ValueError as error:
        NodeSpec("box", mtu=9)  # the line

def test_not_ours():
    raise ValueError("foreign")
"""


@pytest.mark.privileged
def test_an_error_of_ours_is_a_line(pytester: pytest.Pytester) -> None:
    """No frame of ours above it: the suite's own line, if it has one, and what is wrong."""
    found = {name: record["message"] for name, record in records_of(pytester, ERRORS).items()}
    assert found["test_wrong_mark"].startswith("mark reloadlab_node: no option podz; there are agent, ")
    assert found["test_wrong_mark"].count("\n") == 0
    assert "no-such-directory holds no bpf_lxc.c" in found["test_wrong_library"]
    assert found["test_wrong_library"].count("\n") == 0
    text = found["test_in_a_line_of_the_suite"]
    assert 'NodeSpec("box", mtu=9)  # the line' in text
    assert "E           lab.node.topology.InvalidSpec: the MTU is 1280 to 65520 bytes, not 9" in text
    for word in ("topology.py", "the cause"):
        assert word not in text
    assert "ValueError: foreign" in found["test_not_ours"]


MARKS = """
import pytest

pytestmark = pytest.mark.node(pods=0, policy=None)

@pytest.mark.node(pods=2)
@pytest.mark.parametrize("routes", [pytest.param(True, marks=pytest.mark.node(endpoint_routes=True))])
def test_marks(scenario, routes):
    assert len(scenario.node.pods) == 2
    assert scenario.node.spec.endpoint_routes
    with pytest.raises(FileNotFoundError):
        (scenario.node.root / "state" / "policies.json").stat()
"""


@pytest.mark.privileged
def test_marks_add_up_and_the_closest_counts(pytester: pytest.Pytester) -> None:
    (record,) = records_of(pytester, MARKS).values()
    assert (record["outcome"], record["message"]) == ("passed", "")


@pytest.mark.privileged
def test_whoever_calls_pytest_himself_has_the_pace_of_the_machine(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = """
    import os

    def test_paced(scenario):
        assert float(os.environ["RELOADLAB_SLOWNESS"]) >= 1
    """
    pytester.makepyfile(test_mine=suite)
    monkeypatch.delenv("RELOADLAB_SLOWNESS", raising=False)
    pytester.runpytest_subprocess(*SHORT_NAMES, timeout=150).assert_outcomes(passed=1)
    monkeypatch.setenv("RELOADLAB_SLOWNESS", "fast")
    pytester.runpytest_subprocess(*SHORT_NAMES, timeout=150).stdout.fnmatch_lines("*RELOADLAB_SLOWNESS is 'fast'*")

"""The pytest plugin: a node beside the test that wants one, and a record of what every scenario did.

    @pytest.mark.node(pods=3, endpoint_routes=True)
    def test_mine(scenario):
        scenario.reload("pod-1")

The mark takes the fields of `NodeSpec` and, as `agent=`, options of `Agent`; `flows` and `rate` are those of
`Scenario`. The node is up, loaded and under traffic when the test begins; when it ends, every invariant is checked as
part of the test.

    @pytest.mark.cluster(nodes=2, tunnel=True, each={2: {"endpoint_routes": True}})
    def test_ours(cluster):
        cluster.reload("2/pod-1")

The same with several nodes on one underlay: `each` has what is special about single nodes, by their number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.agent.cluster import cluster_specs
from lab.agent.options import parse_macro
from lab.node.topology import NodeSpec
from lab.scenario.scenario import ClusterScenario, Scenario, Watched

_RECORD = pytest.StashKey[Watched]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of the plugin."""
    group = parser.getgroup("reloadlab")
    group.addoption("--reloadlab-record", metavar="DIR", help="write a JSON file per scenario into this directory")
    group.addoption("--reloadlab-library", metavar="DIR", help="C sources instead of our own, e.g. Cilium's bpf/")
    group.addoption(
        "--reloadlab-define",
        type=parse_macro,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a macro for the C of every node",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks."""
    config.addinivalue_line("markers", "node(**spec): the node of a scenario, as fields of NodeSpec")
    config.addinivalue_line("markers", "cluster(nodes, each, **spec): several nodes, as arguments of cluster_specs")
    config.addinivalue_line("markers", "own_sources: needs macros that only our own C knows (bpf/lib/config.h)")
    config.addinivalue_line("markers", "privileged: needs root and the real kernel")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs root where there is none (everything that makes a node does), or our own C where it is not."""
    for item in items:
        makes_node = {"scenario", "cluster"} & set(getattr(item, "fixturenames", ()))
        if os.geteuid() != 0 and (makes_node or item.get_closest_marker("privileged")):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if config.getoption("--reloadlab-library") is not None and item.get_closest_marker("own_sources"):
            item.add_marker(pytest.mark.skip(reason="needs macros that only our own C knows"))


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """A node that is up, loaded and under traffic; its invariants are checked when the test function returns."""
    options, agent = _options(request, "node")
    with Scenario(NodeSpec(_node_name(request.node.name), **options), **agent) as running:
        request.node.stash[_RECORD] = running
        yield running
        # The checks belong to the test itself, see below; if it has failed, they would only hide why.
        running.abandon()


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterScenario]:
    """Nodes on one underlay, loaded and under traffic; their invariants are checked when the test function returns."""
    options, agent = _options(request, "cluster")
    specs = cluster_specs(_node_name(request.node.name), **{"nodes": 2, **options})
    with ClusterScenario(specs, **agent) as running:
        request.node.stash[_RECORD] = running
        yield running
        running.abandon()


def _options(request: pytest.FixtureRequest, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the mark says about the nodes, and about the scenario and its agents."""
    mark = request.node.get_closest_marker(name)
    options: dict[str, Any] = dict(mark.kwargs) if mark is not None else {}
    agent: dict[str, Any] = options.pop("agent", {})
    agent = {**agent, **{key: options.pop(key) for key in ("flows", "rate") if key in options}}
    library = request.config.getoption("--reloadlab-library")
    if library is not None:
        agent = {**agent, "library": Path(library).resolve()}
    defines = request.config.getoption("--reloadlab-define")
    return options, {**agent, "defines": (*defines, *agent.get("defines", ()))}


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Check the invariants while the test still runs: what they find fails the test, not its teardown."""
    result = yield
    running = pyfuncitem.stash.get(_RECORD, None)
    if running is not None:
        running.finish()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write what the scenario did, if asked to."""
    report = yield
    directory = item.config.getoption("--reloadlab-record")
    if directory is not None and (report.when == "call" or not report.passed):
        record = _record(item, report)
        path = Path(directory) / f"{_file_name(item.nodeid)}.json"
        upcoming = path.with_suffix(".new")
        upcoming.write_text(json.dumps(record))
        upcoming.rename(path)
    return report


def _record(item: pytest.Item, report: pytest.TestReport) -> dict[str, Any]:
    running = item.stash.get(_RECORD, None)
    traffic = running.report if running is not None else None
    return {
        "name": item.nodeid,
        "outcome": report.outcome,
        "seconds": report.duration,
        "message": "" if report.passed else report.longreprtext,
        "violations": [str(v) for v in running.violations] if running is not None else [],
        "reloads": [outcome.to_json() for outcome in running.outcomes] if running is not None else [],
        "sent": traffic.sent if traffic is not None else 0,
        "lost": traffic.lost if traffic is not None else 0,
    }


def _node_name(test: str) -> str:
    """Return a name that no other test of any worker or user has at the same time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', test.removeprefix('test_'))[:14].strip('-')}-{worker}-{os.getpid()}"


def _file_name(nodeid: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", nodeid)[-150:]

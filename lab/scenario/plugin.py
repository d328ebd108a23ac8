"""What reloadlab's pytest plugin does once it is used: nodes for tests, checks, a record of every scenario.

The fixtures, marks and options are declared in `reloadlab.pytest_plugin`, which loads this module when one of them is
used and registers it as a plugin.

The mark of a scenario takes the fields of `NodeSpec` and, as `agent=`, options of `Agent`; `flows` and `rate` are
those of `Scenario`. The node is up, loaded and under traffic when the test begins; when it ends, every invariant is
checked as part of the test. The mark of several nodes takes the arguments of `cluster_specs` besides.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datapath.errors import ReloadlabError
from lab.agent.cluster import cluster_specs
from lab.agent.options import parse_macro
from lab.node.topology import NodeSpec
from lab.scenario.scenario import ClusterScenario, Scenario, Watched

_RECORD = pytest.StashKey[Watched]()


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options now, not in every test; called when this module is registered."""
    try:
        _defines(config)
    except ReloadlabError as error:
        raise pytest.UsageError(str(error)) from error


@contextmanager
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """Yield a node that is up, loaded and under traffic; `check` looks at it when the test function has returned."""
    options, agent = _options(request, "reloadlab_node")
    with Scenario(NodeSpec(_node_name(request.node.name), **options), **agent) as running:
        request.node.stash[_RECORD] = running
        yield running
        # The checks belong to the test itself, see below; if it has failed, they would only hide why.
        running.abandon()


@contextmanager
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterScenario]:
    """Yield nodes on one underlay, loaded and under traffic; `check` looks at them as well."""
    options, agent = _options(request, "reloadlab_cluster")
    specs = cluster_specs(_node_name(request.node.name), **{"nodes": 2, **options})
    with ClusterScenario(specs, **agent) as running:
        request.node.stash[_RECORD] = running
        yield running
        running.abandon()


def check(item: pytest.Item) -> None:
    """Check the invariants of the scenario that a test has, if any; InvariantsViolated fails the test."""
    running = item.stash.get(_RECORD, None)
    if running is not None:
        running.finish()


def _options(request: pytest.FixtureRequest, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the mark says about the nodes, and about the scenario and its agents."""
    mark = request.node.get_closest_marker(name)
    options: dict[str, Any] = dict(mark.kwargs) if mark is not None else {}
    agent: dict[str, Any] = options.pop("agent", {})
    agent = {**agent, **{key: options.pop(key) for key in ("flows", "rate") if key in options}}
    library = request.config.getoption("--reloadlab-library")
    if library is not None:
        agent = {**agent, "library": Path(library).resolve()}
    defines = _defines(request.config)
    return options, {**agent, "defines": (*defines, *agent.get("defines", ()))}


def _defines(config: pytest.Config) -> list[tuple[str, str]]:
    return [parse_macro(text) for text in config.getoption("--reloadlab-define")]


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

"""Short names for suites that are all about reloadlab: fixtures `scenario` and `cluster`, marks `node` and `cluster`.

A suite asks for them with `pytest_plugins = ["reloadlab.short_names"]` in its top conftest.py, or with the option
`-p reloadlab.short_names`; `reloadlab run` does. Besides, tests with the mark `privileged` are skipped without root.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

from reloadlab.home import enter

if TYPE_CHECKING:
    from lab.scenario.scenario import ClusterScenario, Scenario

# Such a suite means our packages by their names, whatever else is called lab.
enter(first=True)

# Known already where plugins are loaded by entry points, unless the environment forbids that.
pytest_plugins = ["reloadlab.pytest_plugin"]

MARKS = ("node", "cluster", "own_sources", "own_loader")
"""Each stands for the mark of the same name with reloadlab_ before it."""


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks."""
    config.addinivalue_line("markers", "node(**spec): reloadlab_node")
    config.addinivalue_line("markers", "cluster(nodes, each, **spec): reloadlab_cluster")
    config.addinivalue_line("markers", "own_sources(reason): reloadlab_own_sources")
    config.addinivalue_line("markers", "own_loader(reason): reloadlab_own_loader")
    config.addinivalue_line("markers", "privileged: needs root and the real kernel")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the marks that its short ones stand for, and skip what needs root where there is none."""
    for item in items:
        for name in MARKS:
            for mark in list(item.iter_markers(name)):
                item.add_marker(getattr(pytest.mark, f"reloadlab_{name}")(*mark.args, **mark.kwargs))
        if os.geteuid() != 0 and item.get_closest_marker("privileged"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep the garbage collector from what is imported and collected, which stays for the whole session."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def scenario(reloadlab_scenario: Scenario) -> Scenario:
    """A node that is up, loaded and under traffic; its invariants are checked when the test function returns."""
    return reloadlab_scenario


@pytest.fixture
def cluster(reloadlab_cluster: ClusterScenario) -> ClusterScenario:
    """Nodes on one underlay, loaded and under traffic; their invariants are checked when the test function returns."""
    return reloadlab_cluster

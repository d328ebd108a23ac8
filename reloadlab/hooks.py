"""Hooks that a pytest plugin may implement besides pytest's own, to look into scenarios or to change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lab.scenario.marks import MarkOptions
    from lab.scenario.scenario import ClusterScenario, Scenario


@pytest.hookspec
def pytest_reloadlab_options(item: pytest.Item, options: MarkOptions) -> None:
    """Called before the nodes of a scenario are made, with what its mark and the command line say; may be changed."""


@pytest.hookspec
def pytest_reloadlab_loaded(item: pytest.Item, running: Scenario | ClusterScenario) -> None:
    """Called when a scenario is up, loaded, under traffic and under watch, before the test's body."""

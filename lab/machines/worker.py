"""A pytest plugin for workers on other machines: a worker says where it is, and every report where it was made."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.machines.identity import identity

IDENTITY = "reloadlab_identity"
"""The attribute of a report that holds the identity of the machine, as JSON values; and the event with it."""


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Say where this process runs, before xdist says that it is ready."""
    for plugin in session.config.pluginmanager.get_plugins():
        # xdist's side of the connection has no name of its own.
        if hasattr(plugin, "sendevent"):
            plugin.sendevent(IDENTITY, identity=identity().to_json())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add where this process runs: what it is asked for at that moment, not what it was told."""
    report = yield
    setattr(report, IDENTITY, identity().to_json())
    return report

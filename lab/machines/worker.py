"""A pytest plugin for workers on other machines: every report says where it was made."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.machines.identity import identity

IDENTITY = "reloadlab_identity"
"""The attribute of a report that holds the identity of the machine, as JSON values."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add where this process runs: what it is asked for at that moment, not what it was told."""
    report = yield
    setattr(report, IDENTITY, identity().to_json())
    return report

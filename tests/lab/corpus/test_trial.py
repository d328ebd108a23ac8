"""What a trial takes for a finding of the scenario, and what says nothing about packets."""

from __future__ import annotations

from pathlib import Path

import pytest

from datapath.errors import CompileError, ReloadlabError
from lab.corpus.fault import Fault, Patch
from lab.corpus.trial import Injector
from lab.corpus.verdict import Catch, How
from lab.scenario.verdict import InvariantsViolated, NoVerdict
from lab.watch.violation import Violation

PATCHED = Fault("x", "c", "is wrong", patches=(Patch("bpf_lxc.c", "SPDX-License-Identifier", "patched"),))
REFUSED = CompileError("bpf_lxc.c", (), "error: expected expression")


def tried(item: pytest.Item, directory: Path, error: BaseException, fault: Fault | None = None) -> Injector:
    """Return what a trial of a fault has noted of a test that raises this error."""

    def fail() -> None:
        raise error

    injector = Injector(fault, directory, directory)
    call = pytest.CallInfo.from_call(fail, "call")
    noting = injector.pytest_runtest_makereport(item, call)
    next(noting)
    with pytest.raises(StopIteration):
        noting.send(pytest.TestReport.from_item_and_call(item, call))
    return injector


def caught(item: pytest.Item, directory: Path, error: BaseException, fault: Fault | None = None) -> Catch | None:
    return tried(item, directory, error, fault).catch


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (InvariantsViolated([Violation(6, "3 packets dropped")]), How.INVARIANT),
        (AssertionError("1 == 2"), How.ASSERTION),
        (ReloadlabError("no such object"), How.RELOAD),
        (REFUSED, How.RELOAD),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_is_a_catch(request: pytest.FixtureRequest, tmp_path: Path, error: BaseException, how: How) -> None:
    found = caught(request.node, tmp_path, error)
    assert found is not None
    assert (found.scenario, found.how) == (request.node.nodeid, how)


@pytest.mark.parametrize("fault", [None, PATCHED], ids=["plan", "c"])
def test_traffic_that_could_see_nothing_is_none(
    request: pytest.FixtureRequest, tmp_path: Path, fault: Fault | None
) -> None:
    assert caught(request.node, tmp_path, NoVerdict(6_000_000, 10_000_000), fault) is None


def stopped_by(cause: BaseException) -> ReloadlabError:
    error = ReloadlabError("the rollback is incomplete")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error", [REFUSED, stopped_by(REFUSED)], ids=["by itself", "as a cause"])
def test_c_that_is_refused_is_an_error_of_the_fault(
    request: pytest.FixtureRequest, tmp_path: Path, error: ReloadlabError
) -> None:
    found = tried(request.node, tmp_path, error, PATCHED)
    assert found.catch is None
    assert found.error == f"{request.node.nodeid}: {REFUSED}"

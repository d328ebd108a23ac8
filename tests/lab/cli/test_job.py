from __future__ import annotations

import pytest

from lab.cli import job
from lab.errors import LabNotFound
from lab.node import registry


def fails() -> tuple[str, ...]:
    raise LabNotFound("demo", ())


def test_a_failing_sweep_hides_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the result of the run nor its own failure; what was wrong is printed."""
    monkeypatch.setattr(registry, "sweep", fails)
    with job._swept():
        pass
    with pytest.raises(KeyError), job._swept():
        raise KeyError
    assert capsys.readouterr().err.count("reloadlab: warning: leftovers remain: no lab demo") == 2

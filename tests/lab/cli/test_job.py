from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lab.cli import job
from lab.cli.report import RunFile
from lab.errors import LabNotFound
from lab.node import registry
from lab.system.output import OutputDirectory


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


def test_what_the_run_before_wrote_is_gone_from_the_beginning(tmp_path: Path) -> None:
    """Beside run.json there is no page and no trace of another run, also if this one is killed."""
    for name in (job.REPORT_HTML, job.TRACE_JSON):
        (tmp_path / name).touch()
    with OutputDirectory(tmp_path) as output, job.paged(output, RunFile(output)):
        assert list(tmp_path.iterdir()) == []


def interrupted(out: Path) -> None:
    """A run that is interrupted when its directory is gone."""
    with OutputDirectory(out) as output, job.paged(output, RunFile(output)) as file:
        file.write([])
        shutil.rmtree(out)
        raise KeyboardInterrupt


def test_what_ended_a_run_is_what_it_ends_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if its last files cannot be written."""
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out")
    assert capsys.readouterr().err.splitlines() == [
        f"reloadlab: warning: {tmp_path}/out/{name}: No such file or directory" for name in ("run.json", "report.html")
    ]

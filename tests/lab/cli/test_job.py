from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lab.cli import job
from lab.cli.main import main
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
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_whose_machine_is_not_fit_leaves_nothing_of_the_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run.json", job.REPORT_HTML, job.TRACE_JSON):
        (tmp_path / name).write_text("yesterday")
    monkeypatch.setenv("RELOADLAB_CLANG", str(tmp_path / "no-clang"))
    assert main(["run", "--out", str(tmp_path), str(Path(__file__))]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"reloadlab: what there is of the run: {tmp_path}/{job.REPORT_HTML}"
    assert err[1].startswith("reloadlab: the machine lacks ")
    assert sorted(path.name for path in tmp_path.iterdir()) == [job.REPORT_HTML, "run.json"]
    assert "the machine lacks" in (tmp_path / job.REPORT_HTML).read_text()
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["complete"], found["error"]) == (False, err[1].removeprefix("reloadlab: "))


def test_a_wrong_call_leaves_the_run_before(tmp_path: Path) -> None:
    """Nothing was run, and --lf still knows what had failed."""
    (tmp_path / "run.json").write_text("yesterday")
    assert main(["run", "--out", str(tmp_path), str(tmp_path / "no_suite.py")]) == 2
    assert (tmp_path / "run.json").read_text() == "yesterday"


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

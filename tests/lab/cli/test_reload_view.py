from __future__ import annotations

import pytest

from lab.bench.calltimes import CallTimes
from lab.bench.parallel import Percentiles, WorkerReport
from lab.bench.reload import ManyReloads, ReloadReport
from lab.bench.rounds import Measurement
from lab.cli.reload_view import show

REPORT = ReloadReport(
    object="/lab/bpf_lxc.o",
    programs=19,
    reached=14,
    instructions=9685,
    hooks=("ingress",),
    rows=[
        Measurement("floor: the bare system calls", (0.010, 0.012)),
        Measurement("the pipeline", (0.020, 0.024)),
        Measurement("tc", refusal="cannot load [maps]"),
    ],
    calls=CallTimes(missing="no bcc"),
    pods=20,
    many=[
        ManyReloads("1 at a time", WorkerReport(1, 20, 50.0, Percentiles(19.0, 20.0, 21.0, None), {}), 1.08),
        ManyReloads("2 at a time", WorkerReport(2, 0, 0.0, None, {}), 0.62),
    ],
    steps={"compile": (0.001, 0.003)},
    others=0.1,
)


def test_figures_are_next_to_the_floor(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT)
    out = capsys.readouterr().out
    lines = [line.split("  ") for line in out.splitlines()]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines if line[0]}
    assert cells["the pipeline"] == ["20.00", "22.00", "2.00", "2.00 to 2.00"]
    assert cells["tc"] == ["-", "-", "-", "not possible"]
    assert cells["20 pods, 1 at a time"] == ["50.0", "1.08", "19.00", "20.00", "21.00"]
    assert cells["compile"] == ["2.00", "-"]
    assert "tc: not possible: cannot load [maps]" in out
    assert "time inside system calls: not measured: no bcc" in out


def test_series_have_every_value_and_say_what_was_refused() -> None:
    series = {each.name: each for each in REPORT.series()}
    assert series["reload: the pipeline"].values == (0.020, 0.024)
    assert (series["reload: tc"].values, series["reload: tc"].refusal) == ((), "cannot load [maps]")
    assert (series["step: compile"].values, series["step: compile"].group) == ((0.001, 0.003), "reload")
    assert series["object: instructions"].exact

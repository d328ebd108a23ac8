"""The price of gates: every variant is measured, under the filter or not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab.bench.gates import Calls, measure_gates
from lab.cli.gates_view import show
from tests.lab.labs import cli

pytestmark = pytest.mark.privileged


def test_each_call_with_a_filter_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    report = measure_gates(1, lambda text: None)
    ways = {call: [each.name for each in measurements] for call, measurements in report.calls.items()}
    assert ways == {
        "getppid": ["no filter", "under the filter"],
        "bpf, look-up": ["no filter", "under the filter"],
        "bpf, update": ["no filter", "stopped and let go"],
    }
    series = report.series()
    assert [len(each.values) for each in series] == [1] * 6
    assert series[1].name == "getppid: under the filter"
    show(report)
    assert "stopped and let go" in capsys.readouterr().out


def test_what_was_measured_is_printed_though_its_file_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    argv = cli("bench", "gates", "--rounds", "2", "--out", str(path))
    done = subprocess.run(["prlimit", "--fsize=3000", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert "stopped and let go" in done.stdout
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"reloadlab: {path}: File too large")


@pytest.mark.parametrize("gated", [False, True])
def test_a_gated_variant_is_under_the_filter(gated: bool, tmp_path: Path) -> None:
    """The kernel says so of the process that makes the calls."""

    def note() -> None:
        (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("Seccomp:")]
        os.write(writer, line.split()[1].encode())

    reader, writer = os.pipe()
    assert Calls("x", note, 1, gated=gated).run() > 0
    os.close(writer)
    assert os.read(reader, 8) == (b"2" if gated else b"0")
    os.close(reader)

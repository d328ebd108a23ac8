from __future__ import annotations

import io
import os
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from datapath.base.timing import Interval
from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome, Span
from lab.agent.agent import Agent, Failure
from lab.bench import parallel
from lab.bench.parallel import ParallelReport, Percentiles, Round, Turn, WorkerRounds, measure_parallel
from lab.cli.report import print_parallel
from lab.node import registry
from lab.node.node import Node
from lab.system.sockets import Address
from lab.traffic.defaults import ends
from lab.traffic.exchange import Probe, exchange
from lab.watch.tracing import SyscallEvent, SyscallTracer

MS = 1_000_000


def outcome(milliseconds: int) -> Outcome:
    span = Span("load programs", "bpf_lxc.o", Interval(7, 0, milliseconds * MS))
    return Outcome("pod-1", 101, 2, (), (), (), (span,))


def test_percentiles_are_those_of_all_rounds() -> None:
    """The rate is the median of the rounds, the percentiles are over all reloads."""
    report = WorkerRounds(2, [5.0, 10.0, 2.5], [outcome(n) for n in range(1, 102)]).report()
    assert (report.workers, report.reloads, report.reloads_per_second) == (2, 101, 5.0)
    values = tuple(float(n) for n in range(1, 102))
    assert report.reload == report.steps["load programs"] == Percentiles(51.0, 96.0, 100.0, None, values)
    assert WorkerRounds(1, [1.0], [outcome(3)]).report().reload == Percentiles(3.0, 3.0, 3.0, None, (3.0,))


def test_every_round_keeps_its_reloads_without_those_that_failed() -> None:
    rounds = WorkerRounds(2)
    rounds.add([outcome(3), Failure("pod-2", ReloadlabError("no space left"))], 0.5)
    rounds.add([outcome(4)], 0.25)
    first, second = rounds.report().rounds
    assert first == Round(4.0, (Turn("pod-1", 7, 0, 3 * MS),))
    assert second == Round(4.0, (Turn("pod-1", 7, 0, 4 * MS),))
    assert [failure.subject for failure in rounds.failures] == ["pod-2"]


def test_kernel_share_is_that_of_the_reloading_thread() -> None:
    events = [SyscallEvent(6, 0, 9 * MS, "bpf", 5, 3), SyscallEvent(7, 1 * MS, 1 * MS, "bpf", 5, 3)]
    (times,) = WorkerRounds(1, [1.0], [outcome(4)]).report(events).steps.values()
    assert times.kernel_share == 0.25


def test_report_of_reloads_that_all_failed() -> None:
    """No figures are made up, and the failures are printed."""
    rounds = WorkerRounds(2, [3.0], failures=[Failure("pod-1", ReloadlabError("no space left"))])
    row = rounds.report()
    assert (row.reloads, row.reload, row.steps) == (0, None, {})
    report = ParallelReport(1, 1, (row,), sent=1, lost=0, problems=(), failures=("pod-1: no space",), tracing=None)
    out = io.StringIO()
    print_parallel(Console(file=out, width=100), report)
    assert "pod-1: no space" in out.getvalue()


def test_lost_events_make_a_trace_incomplete() -> None:
    tracer = SyscallTracer()
    assert tracer.incomplete is None
    tracer.lost = 3
    assert tracer.incomplete == "3 system calls did not fit the tracer's buffer"


@pytest.mark.privileged
def test_warnings_and_drops_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    class Warner(Agent):
        def start(self, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
            done = super().start(workers=workers, cancel=cancel)
            self.change = lambda plan: replace(plan, warnings=("device eth7 does not exist",))
            return done

    def drop(number: int, workers: int, rate: float) -> None:
        """Send to a pod whose policy lets nothing pass; the traffic runs between others."""
        with Agent(Node.open(f"parallel-{os.getpid()}")) as agent:
            agent.apply_policies([{"name": "nothing", "endpoint": "pod-2", "ingress": [{}]}])
            (source, ip, _), (target, to, _) = ends(agent.node)["pod-1"], ends(agent.node)["pod-2"]
            probe = Probe("udp", 53, count=3)
            here, there = Address(source, str(ip), 30000), Address(target, str(to), 53)
            assert exchange(here, there, probe, timeout=0.5).arrived == 0

    monkeypatch.setattr(parallel, "Agent", Warner)
    report = measure_parallel(pods=1, workers=(1,), rounds=1, on_round=drop)
    warning, drops = report.problems
    assert warning == "invariant 11: reload of pod-2 warns: device eth7 does not exist"
    assert drops.startswith("invariant 6: 3 packets dropped as Policy denied (133, ingress) instead of 0: ")
    assert " of the probe " in drops
    assert not report.passed


@pytest.mark.privileged
def test_whole_measurement_leaves_nothing() -> None:
    rates: list[tuple[int, int]] = []
    report = measure_parallel(
        pods=2, workers=(1, 2), rounds=2, on_round=lambda number, workers, rate: rates.append((number, workers))
    )
    assert rates == [(0, 1), (0, 2), (1, 1), (1, 2)], "the worker counts take turns"
    assert (report.problems, report.failures, report.lost) == ((), (), 0)
    assert report.passed
    assert report.sent > 0
    for row in report.workers:
        assert row.reloads == 4
        assert row.reload is not None
        assert 0 < row.reload.p50 <= row.reload.p95 <= row.reload.p99
        assert {"load programs", "attach ingress", "commit"} <= row.steps.keys()
        assert report.tracing is not None or 0 < (row.reload.kernel_share or 0) < 1
    assert f"parallel-{os.getpid()}" not in {lab.name for lab in registry.list_labs()}

#!/usr/bin/env python3
"""machines.py RUN_JSON [WORKERS ...]: how long its scenarios would take, spread over so many workers.

Calculated, not measured: the scenarios take the seconds that they took in that run, and xdist's own scheduler
(worksteal, as `reloadlab run --on` has it) hands them out to workers that only count time. Workers start one after the
other, and nothing is spread before all are up. --slowness: of emulated machines, say.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import script
from xdist.scheduler.worksteal import WorkStealingScheduling

from reloadlab import ReloadlabError

START = 1.5
"""Seconds for each worker to start, one after the other; docs/machines.md."""
READY = 15.0
"""Seconds before and after: to connect, copy what changed, examine, and report."""
MOST_WORKERS, SLOWEST = 4096, 50.0


class Clock:
    """Events in the order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def run(self, between: Callable[[], None]) -> None:
        """Let all events happen; `between` is called after each."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
            between()


class Worker:
    """A worker as xdist's scheduler knows it. Like xdist's own, it begins an item once it knows what follows."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"worker-{number}", spec=SimpleNamespace())
        self.shutting_down = False
        self._simulation = simulation
        self._queue: list[int] = []
        self._next: int | None = None
        self._busy = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self._queue += indices
        self._go_on()

    def send_steal(self, indices: list[int]) -> None:
        """Give items back: all that are asked for, or none if one of them is no longer in the queue."""
        given = list(indices) if set(indices) <= set(self._queue) else []
        self._queue = [index for index in self._queue if index not in given]
        scheduler = self._simulation.scheduler
        self._simulation.clock.after(0, lambda: scheduler.remove_pending_tests_from_node(self, given))

    def shutdown(self) -> None:
        self.shutting_down = True
        self._go_on()

    def _go_on(self) -> None:
        if self._busy:
            return
        if self._next is None and self._queue:
            self._next = self._queue.pop(0)
        if self._next is None or not (self._queue or self.shutting_down):
            return
        item, self._next = self._next, self._queue.pop(0) if self._queue else None
        self._busy = True
        self._simulation.clock.after(self._simulation.seconds[item], lambda: self._finish(item))

    def _finish(self, item: int) -> None:
        self._busy = False
        self._simulation.finished.append(item)
        self._simulation.scheduler.mark_test_complete(self, item, self._simulation.seconds[item])
        self._go_on()


class Simulation:
    """Scenarios that take `seconds`, over a number of workers."""

    def __init__(self, seconds: list[float], workers: int) -> None:
        self.seconds = seconds
        self.finished: list[int] = []
        self.clock = Clock()
        tx = ["popen"] * workers
        config = SimpleNamespace(
            getvalue=lambda name: tx if name == "tx" else None, option=SimpleNamespace(debug=False)
        )
        self.scheduler = WorkStealingScheduling(config)
        self._workers = [Worker(self, number) for number in range(workers)]

    def run(self) -> float:
        """Return the seconds from the start of the first worker to the end of the last scenario."""
        names = [str(number) for number in range(len(self.seconds))]
        for number, worker in enumerate(self._workers, start=1):
            self.scheduler.add_node(worker)
            self.clock.after(START * number, partial(self._collected, worker, names))
        self.clock.run(self._end_if_finished)
        assert len(self.finished) == len(self.seconds)
        return self.clock.now

    def _collected(self, worker: Worker, names: list[str]) -> None:
        self.scheduler.add_node_collection(worker, names)
        if self.scheduler.collection_is_completed:
            self.scheduler.schedule()

    def _end_if_finished(self) -> None:
        if self.scheduler.tests_finished:
            for worker in self._workers:
                worker.shutdown()


def seconds_of(path: Path) -> list[float]:
    """Return how long each scenario of a run took; ReloadlabError if the file is that of no run."""
    # Importable once something of reloadlab is.
    from lab.report.documents import read_document

    document = read_document(path)
    found = [row["seconds"] for row in document.content["scenarios"]] if document.kind == "run" else []
    if not found:
        raise ReloadlabError(f"{path}: there are no scenarios in it; name a run.json")
    return found


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 to {MOST_WORKERS}")
    return int(text)


def _slowness(text: str) -> float:
    factor = float(text)
    if not 1 <= factor <= SLOWEST:
        raise argparse.ArgumentTypeError(f"{text} is no factor from 1 to {SLOWEST:g}")
    return factor


def main(*words: str) -> int:
    """Print a line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_JSON")
    parser.add_argument("workers", nargs="*", type=_workers, default=[1, 2, 4, 8, 16, 32, 64], metavar="WORKERS")
    parser.add_argument("--slowness", type=_slowness, default=1.0, metavar="FACTOR")
    args = parser.parse_args(words)
    seconds = [each * args.slowness for each in seconds_of(args.run)]
    print(
        f"calculated from {args.run}: {len(seconds)} scenarios, {sum(seconds):.0f} s, the longest {max(seconds):.0f} s"
    )
    print("workers  minutes  core hours  busy")
    for workers in args.workers:
        took = Simulation(seconds, workers).run()
        whole = took + READY
        busy = sum(seconds) / (took * workers)
        print(f"{workers:7}  {whole / 60:7.1f}  {whole * workers / 3600:10.2f}  {busy:4.0%}")
    return 0


if __name__ == "__main__":
    script.run(main, __doc__)

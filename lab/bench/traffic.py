"""What packets between two pods cost, with the programs on their way and without, in several builds and modes.

Each way is a node of its own, or two; all stand at the same time and take turns. Without programs the kernel forwards
between the same veths. What the programs alone take of it the kernel says itself (BPF_PROG_TEST_RUN): it runs them on a
packet that was captured between the two pods, so its connection is known, tail calls included, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice

from lab.bench.load import BATCH, Ends, TcpLoad, UdpLoad
from lab.bench.pairs import Build, Pair, one_node, plain, plain_tunnel, two_nodes
from lab.bench.programs import follow
from lab.bench.rounds import Busy, Measurement, Progress, Timed, Way, take_turns

_TRIES = 8
_BATCHES = 12
_ROUND_TRIPS = 250
_STREAM = 16_000_000
"""What is done at once, in one or two milliseconds: less than a scheduler's slice."""


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """What is measured; `other` is a second build next to our own."""

    other: Build | None = None
    rounds: int = 20

    @property
    def builds(self) -> tuple[Build, ...]:
        return (Build(), self.other) if self.other is not None else (Build(),)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is counted; `unit` is what `value` returns: with `rate` so much a second, otherwise a time."""

    name: str
    unit: str
    scale: float
    rate: bool = True

    def value(self, seconds: float) -> float:
        """Turn the seconds of one of what is counted into the unit."""
        return self.scale / seconds if self.rate else self.scale * seconds


PROGRAMS = Metric("programs alone", "ns a packet", 1e9, rate=False)
UDP = Metric("UDP, 18 bytes", "packets/s", 1.0)
ROUND_TRIP = Metric("TCP, a byte and its answer", "round trips/s", 1.0)
STREAM = Metric("TCP, one way", "Gbit/s", 8e-9)


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """The rows of one measure, in seconds; the first of each group is what the others of it are held against."""

    metric: Metric
    version: int
    groups: tuple[tuple[Measurement, ...], ...]


@dataclass(slots=True)
class PacketCosts:
    """Everything that was measured. `others` is the share of the CPUs that other processes had meanwhile."""

    builds: tuple[Build, ...]
    comparisons: list[MetricComparison] = field(default_factory=list)
    others: float = 0.0


def measure_traffic(options: TrafficOptions, progress: Progress) -> PacketCosts:
    """Metric everything. The caller has left the machine's mount namespace (bench_topology.leave_mount_namespace)."""
    report = PacketCosts(options.builds)
    with ExitStack() as stack:
        progress("compiling")
        one = [pair for number, build in enumerate(options.builds) for pair in one_node(stack, build, number)]
        two = [two_nodes(stack, build, number) for number, build in enumerate(options.builds)]
        groups = [[plain(stack), *one], [plain_tunnel(stack), *two]]
        stack.enter_context(_one_cpu())
        busy = Busy()
        for version in (4, 6):
            programs: list[Way] = [follow(stack, pair, version) for pair in one]
            report.comparisons.append(_compare(PROGRAMS, version, [programs], options, progress))
            loads = [[_Load(stack, pair, version) for pair in pairs] for pairs in groups]
            for kind in (UDP, ROUND_TRIP, STREAM):
                ways: list[list[Way]] = [[load.way(kind) for load in group] for group in loads]
                report.comparisons.append(_compare(kind, version, ways, options, progress))
        report.others = busy.others()
    return report


def _compare(
    metric: Metric, version: int, groups: Sequence[Sequence[Way]], options: TrafficOptions, progress: Progress
) -> MetricComparison:
    everything = [way for group in groups for way in group]
    rows = iter(take_turns(everything, options.rounds, lambda text: progress(f"{metric.name}, IPv{version}: {text}")))
    return MetricComparison(metric, version, tuple(tuple(islice(rows, len(group))) for group in groups))


class _Load:
    """The load between a pair, its sockets open until `stack` closes."""

    def __init__(self, stack: ExitStack, pair: Pair, version: int) -> None:
        self._name = pair.name
        self._ends = pair.ends(version)
        self._udp = stack.enter_context(UdpLoad(self._ends))
        self._tcp = stack.enter_context(TcpLoad(self._ends))

    def way(self, kind: Metric) -> Way:
        """Return the load that `kind` counts."""
        if kind is UDP:
            return Timed(self._name, lambda: self._udp.run(_BATCHES), _BATCHES * BATCH, _TRIES)
        if kind is ROUND_TRIP:
            return Timed(self._name, lambda: self._tcp.round_trips(_ROUND_TRIPS), _ROUND_TRIPS, _TRIES)
        return _Streams(self._name, self._ends)


@dataclass(frozen=True, slots=True)
class _Streams:
    """A connection for each round: one that has lost a packet stays slow for longer than all rounds take."""

    name: str
    ends: Ends

    def run(self) -> float:
        with TcpLoad(self.ends) as load:
            load.stream(_STREAM)
            return Timed(self.name, lambda: load.stream(_STREAM), _STREAM, _TRIES).run()


@contextmanager
def _one_cpu() -> Iterator[None]:
    """Keep this thread on one CPU, the last: the first has most of the interrupts."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)

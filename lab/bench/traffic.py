"""The cost of packets between two pods, with the programs on their path and without, in several builds and modes.

Each variant has a node of its own, or two; all of them exist at the same time and are measured in turns. Without
programs the kernel forwards between the same veths. The cost of the programs alone is measured by the kernel
(BPF_PROG_TEST_RUN), which runs them with their tail calls on a packet of a known connection, captured between the pods.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from datapath.errors import ReloadlabError
from lab.bench.load import BATCH, Ends, TcpLoad, UdpLoad
from lab.bench.pairs import PLAIN, Build, Pair, one_node, pair_without_programs, tunnel_pair_without_programs, two_nodes
from lab.bench.programs import capture_path
from lab.bench.rounds import BackgroundLoad, Measurement, Progress, TimedCall, Variant, run_in_turns
from lab.bench.sides import SIDES
from lab.results.result import Better, Series

_TRIES = 8
_BATCHES = 12
_ROUND_TRIPS = 250
_STREAM = 16_000_000
"""Work of one try: one or two milliseconds, less than a time slice of the scheduler."""


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """What to measure; `other` is a second build next to our own."""

    other: Build | None = None
    rounds: int = 20

    @property
    def builds(self) -> tuple[Build, ...]:
        return (Build(), self.other) if self.other is not None else (Build(),)


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity: `unit` is that of `value`, which is a rate per second (`rate`) or a time."""

    name: str
    unit: str
    scale: float
    rate: bool = True

    def value(self, seconds: float) -> float:
        """Convert the seconds of one counted unit into `unit`."""
        return self.scale / seconds if self.rate else self.scale * seconds


PROGRAMS = Metric("programs alone", "ns a packet", 1e9, rate=False)
UDP = Metric("UDP, 18 bytes", "packets/s", 1.0)
ROUND_TRIP = Metric("TCP, a byte and its answer", "round trips/s", 1.0)
STREAM = Metric("TCP, one way", "Gbit/s", 8e-9)


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """The measurements of one metric, in groups; the first of a group is the baseline of the group."""

    metric: Metric
    version: int
    groups: tuple[tuple[Measurement, ...], ...]

    def series_of(self, row: Measurement) -> Series:
        """Return the series of one of the measurements."""
        series = row.series(f"{self.metric.name}, IPv{self.version}")
        if not self.metric.rate:
            return series
        values = tuple(self.metric.value(seconds) for seconds in row.seconds)
        return replace(series, unit=self.metric.unit, values=values, better=Better.HIGHER)


@dataclass(slots=True)
class PacketCosts:
    """All results. `others` is the share of the CPUs that other processes had meanwhile."""

    builds: tuple[Build, ...]
    comparisons: list[MetricComparison] = field(default_factory=list)
    others: float = 0.0

    def series(self) -> list[Series]:
        """Return the series of the result: rates in the unit of their metric, times in seconds.

        With a second build ours is side A and that one B; what has no programs is of neither.
        """
        rows = [(item, row) for item in self.comparisons for group in item.groups for row in group]
        if len(self.builds) == 1:
            return [item.series_of(row) for item, row in rows]
        return [self._of_side(item, row) for item, row in rows]

    def _of_side(self, item: MetricComparison, row: Measurement) -> Series:
        ours, second = SIDES
        name = row.name.removeprefix(self.builds[1].prefix)
        side = second if name != row.name else "" if PLAIN in name else ours
        return replace(item.series_of(replace(row, name=name)), side=side)


def measure_traffic(options: TrafficOptions, progress: Progress) -> PacketCosts:
    """Measure everything. The caller has called lab.bench.topology.isolate_mounts."""
    report = PacketCosts(options.builds)
    with ExitStack() as stack:
        progress("compiling")
        one = [pair for number, build in enumerate(options.builds) for pair in one_node(stack, build, number)]
        two = [two_nodes(stack, build, number) for number, build in enumerate(options.builds)]
        groups = [[pair_without_programs(stack), *one], [tunnel_pair_without_programs(stack), *two]]
        background = BackgroundLoad()
        report.comparisons += compare_pairs(groups, one, options.rounds, progress)
        report.others = background.share()
    return report


def compare_pairs(
    groups: Sequence[Sequence[Pair]],
    alone: Sequence[Pair],
    rounds: int,
    progress: Progress,
    *,
    metrics: Sequence[Metric] = (UDP, ROUND_TRIP, STREAM),
    tolerant: bool = False,
) -> Iterator[MetricComparison]:
    """Measure the programs of the pairs in `alone`, then each metric between all pairs, for both IP versions.

    A pair that fails is raised; if this is `tolerant`, it has the reason in the place of its figures.
    """
    turns = _Turns(rounds, progress, tolerant)
    with ExitStack() as stack:
        stack.enter_context(_one_cpu())
        for version in (4, 6):
            programs = [turns.variant(pair.name, partial(capture_path, stack, pair, version)) for pair in alone]
            yield turns.compare(PROGRAMS, version, [programs])
            for metric in metrics:
                loads = [
                    [turns.variant(pair.name, partial(_load, stack, pair, version, metric)) for pair in pairs]
                    for pairs in groups
                ]
                yield turns.compare(metric, version, loads)


@dataclass(frozen=True, slots=True)
class _Turns:
    """Measures variants in turns; if it is `tolerant`, one that fails has a measurement with the reason."""

    rounds: int
    progress: Progress
    tolerant: bool

    def variant(self, name: str, make: Callable[[], Variant]) -> Variant:
        """Return the variant that `make` makes, or one that fails as that did."""
        try:
            return make()
        except ReloadlabError as error:
            if not self.tolerant:
                raise
            return _Failed(name, error)

    def compare(self, metric: Metric, version: int, groups: Sequence[Sequence[Variant]]) -> MetricComparison:
        """Measure a metric of all groups together."""
        everything = [variant for group in groups for variant in group]
        told = f"{metric.name}, IPv{version}"
        measured = run_in_turns(
            everything, self.rounds, lambda text: self.progress(f"{told}: {text}"), tolerant=self.tolerant
        )
        rows = iter(measured)
        return MetricComparison(metric, version, tuple(tuple(islice(rows, len(group))) for group in groups))


@dataclass(frozen=True, slots=True)
class _Failed:
    """A variant that could not be made."""

    name: str
    error: ReloadlabError

    def run(self) -> float:
        raise self.error


def _load(stack: ExitStack, pair: Pair, version: int, metric: Metric) -> Variant:
    """Return the load between a pair that the metric measures; its sockets stay open until `stack` closes."""
    ends = pair.ends(version)
    if metric is UDP:
        udp = stack.enter_context(UdpLoad(ends))
        return TimedCall(pair.name, lambda: udp.run(_BATCHES), _BATCHES * BATCH, _TRIES)
    if metric is ROUND_TRIP:
        tcp = stack.enter_context(TcpLoad(ends))
        return TimedCall(pair.name, lambda: tcp.round_trips(_ROUND_TRIPS), _ROUND_TRIPS, _TRIES)
    return _Streams(pair.name, ends)


@dataclass(frozen=True, slots=True)
class _Streams:
    """A new connection for each round: one that lost a packet would stay slow for longer than all rounds take."""

    name: str
    ends: Ends

    def run(self) -> float:
        with TcpLoad(self.ends) as load:
            load.stream(_STREAM)
            return TimedCall(self.name, lambda: load.stream(_STREAM), _STREAM, _TRIES).run()


@contextmanager
def _one_cpu() -> Iterator[None]:
    """Pin this thread to the last CPU: the first one serves most of the interrupts."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)

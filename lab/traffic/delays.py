"""How long packets took, and whether that was the path or an engine that did not run."""

from __future__ import annotations

from collections import Counter

from lab.traffic.report import Delays, Event, Pause

STARVED_NS = 5_000_000
"""An engine that should have run and did not for this long has starved: steps of a reload are over by then."""

CALM_FACTOR = 20
"""A packet is late if it takes this many times as long as 99.9 % of the packets did before the first reload."""

LATEST_NS = 800_000_000
"""At most, whatever the machine was like: the kernel sends a neighbour solicitation or a SYN again after one second."""


class Pauses:
    """When the engine should have run and did not."""

    def __init__(self) -> None:
        self.all: list[Pause] = []

    def note(self, start_ns: int, end_ns: int) -> None:
        if end_ns - start_ns > STARVED_NS:
            self.all.append(Pause(start_ns, end_ns))

    def within(self, start_ns: int, end_ns: int) -> int:
        """Return for how many nanoseconds of [start_ns, end_ns] the engine did not run."""
        total = 0
        for pause in reversed(self.all):
            if pause.end_ns <= start_ns:
                break
            total += max(min(pause.end_ns, end_ns) - max(pause.start_ns, start_ns), 0)
        return total


class DelayRecorder:
    """The delays of one flow: buckets of 1/8 of a power of two, and those beyond `late_after_ns` with their times."""

    def __init__(self, pauses: Pauses, late_after_ns: int) -> None:
        self._pauses = pauses
        self._late_after_ns = late_after_ns
        self._buckets: Counter[int] = Counter()
        self._late: list[tuple[int, int, int]] = []
        self._worst = (0, 0)

    def packet(self, sent_ns: int, now_ns: int, waited_ns: int = 0) -> int:
        """Return how long a packet took without the `waited_ns` in its socket, and remember it if that was too long."""
        took = now_ns - sent_ns - waited_ns
        if took > self._late_after_ns:
            took = min(took, now_ns - sent_ns - self._pauses.within(sent_ns, now_ns))
            if took > self._late_after_ns:
                self._late.append((sent_ns, now_ns, took))
        return max(took, 0)

    def round_trip(self, sent_ns: int, took_ns: int) -> None:
        """Count a round trip."""
        self._buckets[_bucket(took_ns)] += 1
        if took_ns > self._worst[0]:
            self._worst = (took_ns, sent_ns)

    def report(self) -> Delays:
        """Return the distribution."""
        buckets = tuple((_upper(bucket), count) for bucket, count in sorted(self._buckets.items()))
        p50, p99, p999 = (percentile(buckets, share) for share in (0.5, 0.99, 0.999))
        return Delays(self._buckets.total(), p50, p99, p999, *self._worst, buckets)

    def late(self, bound_ns: int) -> list[Event]:
        """Return the packets that took longer than `bound_ns`, but for pauses: one may be noted after the packet."""
        known = (
            (sent_ns, min(took, now_ns - sent_ns - self._pauses.within(sent_ns, now_ns)))
            for sent_ns, now_ns, took in self._late
        )
        return [Event("late", at, f"{took / 1e6:,.0f} ms") for at, took in known if took > bound_ns]


def percentile(buckets: tuple[tuple[int, int], ...], share: float) -> int:
    """Return the upper bound of the bucket below which `share` of all lie; 0 without any."""
    wanted = share * sum(count for _, count in buckets)
    for upper, count in buckets:
        wanted -= count
        if wanted <= 0:
            return upper
    return 0


def late_bound(late_after_ns: int, calm_ns: list[int]) -> int:
    """Return how long a packet may take, given the round trips of an undisturbed path on the same machine."""
    calm = sorted(calm_ns)
    usual = calm[min(int(len(calm) * 0.999), len(calm) - 1)] if calm else 0
    return max(late_after_ns, min(CALM_FACTOR * usual, LATEST_NS))


def _bucket(value: int) -> int:
    shift = max(value.bit_length() - 4, 0)
    return (shift << 3) + (value >> shift)


def _upper(bucket: int) -> int:
    shift = max((bucket >> 3) - 1, 0)
    return ((bucket - (shift << 3) + 1) << shift) - 1

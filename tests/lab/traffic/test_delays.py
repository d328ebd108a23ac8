"""Delays: their distribution, what is late, and what an engine without CPU does not count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lab.traffic.delays import LATEST_NS, STARVED_NS, DelayRecorder, Pauses, late_bound, percentile
from lab.traffic.engine import Burst

MS = 1_000_000


def recorder(*pauses: tuple[int, int]) -> DelayRecorder:
    noted = Pauses()
    for start, end in pauses:
        noted.note(start, end)
    return DelayRecorder(noted, 200 * MS)


@given(st.lists(st.integers(0, 1 << 40), min_size=1))
def test_percentiles_are_upper_bounds_at_most_an_eighth_too_high(times: list[int]) -> None:
    found = recorder()
    for took in times:
        found.round_trip(1, took)
    report = found.report()
    assert report.count == len(times) == sum(count for _, count in report.buckets)
    assert report.worst_ns == max(times)
    assert max(times) <= percentile(report.buckets, 1.0) <= max(times) * 9 / 8 + 1
    assert report.p50_ns <= report.p99_ns <= report.p999_ns


def test_what_a_packet_waits_in_its_socket_is_not_its_own_delay() -> None:
    found = recorder()
    assert found.packet(0, 900 * MS, 800 * MS) == 100 * MS
    assert found.late(200 * MS) == []


def test_what_a_packet_waits_for_an_engine_without_cpu_is_not_its_own_delay() -> None:
    found = recorder((100 * MS, 900 * MS))
    assert found.packet(0, 1000 * MS) == 200 * MS
    assert found.late(200 * MS) == []


def test_a_packet_that_is_held_is_late_with_the_time_of_its_sending() -> None:
    found = recorder((5000 * MS, 5100 * MS))
    found.packet(7 * MS, 507 * MS)
    assert [(event.at_ns, event.text) for event in found.late(200 * MS)] == [(7 * MS, "500 ms")]
    assert found.late(500 * MS) == []


def test_a_pause_that_is_noted_after_the_packet_counts() -> None:
    """The engine lost the CPU between sending and reading, in one go: it knows when it is done."""
    pauses = Pauses()
    found = DelayRecorder(pauses, 200 * MS)
    found.packet(7 * MS, 507 * MS)
    pauses.note(8 * MS, 408 * MS)
    assert found.late(200 * MS) == []
    assert [event.text for event in found.late(90 * MS)] == ["100 ms"]


def test_short_pauses_are_no_starvation() -> None:
    pauses = Pauses()
    pauses.note(0, STARVED_NS)
    pauses.note(10 * STARVED_NS, 12 * STARVED_NS)
    assert len(pauses.all) == 1
    assert pauses.within(0, 11 * STARVED_NS) == STARVED_NS
    assert pauses.within(13 * STARVED_NS, 14 * STARVED_NS) == 0


def test_the_bound_follows_the_undisturbed_path_within_limits() -> None:
    assert late_bound(200 * MS, []) == 200 * MS
    assert late_bound(200 * MS, [MS] * 100) == 200 * MS
    assert late_bound(200 * MS, [20 * MS] * 100) == 400 * MS
    assert late_bound(200 * MS, [900 * MS] * 100) == LATEST_NS
    assert late_bound(2000 * MS, [900 * MS] * 100) == 2000 * MS


def test_a_burst_does_not_wait_while_the_engine_has_no_cpu() -> None:
    pauses = Pauses()
    burst = Burst([], sent_ns=1_000, timeout_ns=2 * STARVED_NS)
    assert not burst.is_over(1_000 + 2 * STARVED_NS - 1, pauses)
    assert burst.is_over(1_000 + 2 * STARVED_NS, pauses)
    pauses.note(500, 1_000 + 10 * STARVED_NS)
    assert not burst.is_over(1_000 + 12 * STARVED_NS - 1, pauses)
    assert burst.is_over(1_000 + 12 * STARVED_NS, pauses)

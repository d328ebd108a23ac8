"""A time is told with the step of the reload during which it lies."""

from __future__ import annotations

from datapath.base.timing import Interval
from datapath.reload.outcome import Span
from lab.scenario.timeline import Reload, Timeline

MS = 1_000_000


def span(step: str, target: str, start_ms: float, end_ms: float, *helpers: tuple[float, float]) -> Span:
    pieces = tuple(Interval(2, round(start * MS), round(end * MS)) for start, end in helpers)
    return Span(step, target, Interval(1, round(start_ms * MS), round(end_ms * MS)), pieces)


HOST = Reload(
    "host",
    12,
    (
        span("load programs", "bpf_host.o", 10, 14, (11, 13), (10.5, 12)),
        span("attach ingress", "cilium_host", 15, 16),
        span("commit", "host", 16, 17),
    ),
)
POD = Reload("2/pod-1", 13, (span("compile", "bpf_lxc.c", 30, 31),), rollback=Interval(1, 32 * MS, 33 * MS))
TIMELINE = Timeline([POD, HOST])


def at(*ms: float) -> str:
    return TIMELINE.places(round(each * MS) for each in ms)


def test_during_a_step() -> None:
    assert at(15.41) == 'during "attach ingress cilium_host" of host (generation 12, +0.41 ms)'


def test_several_times_of_a_step_are_told_together() -> None:
    assert at(15.63, 15.41, 15.5) == 'during "attach ingress cilium_host" of host (generation 12, +0.41 to +0.63 ms)'


def test_between_two_steps() -> None:
    assert at(14.2) == (
        'between "load programs bpf_host.o" and "attach ingress cilium_host" of host (generation 12, +0.20 ms)'
    )


def test_a_step_whose_target_is_the_subject_is_named_without_it() -> None:
    assert at(16.5) == 'during "commit" of host (generation 12, +0.50 ms)'


def test_inside_a_step_the_pieces_of_helper_threads_are_told() -> None:
    assert at(11.5) == (
        'during "load programs bpf_host.o" of host (generation 12, +1.50 ms, after piece 2 began, before piece 1 ended)'
    )
    assert at(13.5).endswith("+3.50 ms, after piece 2 ended)")
    # Times of several pieces are told without them.
    assert at(11.5, 13.5).endswith("+1.50 to +3.50 ms)")


def test_between_reloads() -> None:
    assert at(20) == "after the reload of host (generation 12, +3.00 ms, before 2/pod-1 (generation 13))"
    assert at(9) == "before the reload of host (generation 12, -1.00 ms)"
    assert at(40) == "after the reload of 2/pod-1 (generation 13, +7.00 ms)"


def test_the_rollback_of_a_failed_reload_is_a_place() -> None:
    assert at(32.5) == "during the rollback of 2/pod-1 (generation 13, +0.50 ms)"
    assert at(31.5) == 'between "compile bpf_lxc.c" and the rollback of 2/pod-1 (generation 13, +0.50 ms)'


def test_reloads_side_by_side_are_both_told() -> None:
    timeline = Timeline([HOST, Reload("pod-1", 14, (span("compile", "bpf_lxc.c", 15, 20),))])
    assert timeline.place(round(15.5 * MS)) == (
        'during "attach ingress cilium_host" of host (generation 12, +0.50 ms)'
        ' and during "compile bpf_lxc.c" of pod-1 (generation 14, +0.50 ms)'
    )


def test_a_long_reload_is_found_behind_short_ones() -> None:
    """As workers reload: which of them ran at a time is asked of hundreds, and some began long ago."""
    ends = [(0, 90), (1, 5), (10, 12), (11, 60), (20, 21), (70, 80), (95, 99)]
    reloads = [Reload(f"pod-{n}", n, (span("compile", "", *end),)) for n, end in enumerate(ends)]
    for ms in range(-1, 101):
        text = Timeline(reloads).place(ms * MS)
        running = [f"of pod-{n} " for n, (start, end) in enumerate(ends) if start <= ms <= end]
        assert [name for name in running if name in text] == running[:3], (ms, text)
        assert text.startswith("during") == bool(running)
    assert "after the reload of pod-0 (generation 0, +1.00 ms, before pod-6" in Timeline(reloads).place(91 * MS)


def test_many_places_are_counted() -> None:
    text = at(5, 10.2, 14.2, 15.2, 16.5, 20)
    assert text.count(";") == 3
    assert text.endswith("; and at 3 other places")


def test_without_a_reload() -> None:
    assert Timeline().place(5) == "while nothing was reloaded"


def test_a_reload_that_began_no_step_is_left_out() -> None:
    assert Timeline([Reload("pod-1", 3, ())]).reloads == []

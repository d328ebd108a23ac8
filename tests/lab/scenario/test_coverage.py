"""A step is seen if a packet that meets what is reloaded was sent while it ran, or before the next one began."""

from __future__ import annotations

from collections.abc import Sequence

from datapath.base.timing import Interval
from datapath.reload.outcome import Span
from lab.scenario.coverage import Coverage, coverage
from lab.scenario.timeline import Reload


def reload(subject: str, *spans: tuple[str, int, int], rollback: tuple[int, int] | None = None) -> Reload:
    steps = tuple(Span(name, "lxc7", Interval(1, start, end)) for name, start, end in spans)
    return Reload(subject, 3, steps, None if rollback is None else Interval(1, *rollback))


POD = reload("pod-1", ("compile", 10, 20), ("attach ingress", 30, 40), ("commit", 50, 60))
LATER = reload("pod-2", ("compile", 100, 110), ("attach ingress", 120, 130), ("commit", 140, 150))


KINDS = ("compile of a pod", "attach ingress of a pod", "commit of a pod")


def covered(reloads: Sequence[Reload], **sent: Sequence[int]) -> Coverage:
    return coverage(reloads, lambda subject: sent.get(subject.replace("-", "_").replace("/", "_"), ()))


def test_a_packet_during_a_step_or_before_the_next_has_seen_it() -> None:
    assert covered([POD], pod_1=[15, 45, 55]) == Coverage(3, 0, KINDS)
    # The packet between the first step and the second meets what the first has left.
    assert covered([POD], pod_1=[25, 35, 70]) == Coverage(3, 0, KINDS)


def test_a_step_without_a_packet_is_unseen() -> None:
    assert covered([POD], pod_1=[15, 55]) == Coverage(2, 1, (KINDS[0], KINDS[2]), (KINDS[1],))
    assert covered([POD], pod_1=[29, 50, 9]).unseen == 1


def test_the_last_step_ends_where_the_next_reload_begins() -> None:
    seen = covered([POD, LATER], pod_1=[10, 30, 100], pod_2=[100, 120, 140])
    assert (seen.seen, seen.unseen) == (5, 1)


def test_a_kind_that_was_seen_once_is_not_listed() -> None:
    """Pods are alike; each step counts by itself."""
    assert covered([POD, LATER], pod_1=[10, 30, 50], pod_2=[100]) == Coverage(4, 2, KINDS)


def test_packets_of_other_endpoints_do_not_count() -> None:
    assert covered([POD], pod_2=[15, 35, 55]).seen == 0


def test_kinds_of_the_host_have_their_target_and_those_of_nodes_their_number() -> None:
    host = reload("2/host", ("attach ingress", 10, 20))
    pod = reload("2/pod-1", ("attach ingress", 30, 40))
    assert covered([host, pod]).unseen_kinds == ("attach ingress lxc7 of 2/host", "attach ingress of a pod of node 2")


def test_what_a_failed_reload_has_done_is_there_until_it_is_undone() -> None:
    failed = reload("pod-1", ("compile", 10, 20), rollback=(30, 40))
    assert covered([failed], pod_1=[35]).seen == 1
    assert covered([failed], pod_1=[45]).seen == 0


def test_a_reload_that_was_cancelled_before_its_first_step_has_none() -> None:
    never = reload("pod-1", rollback=(30, 40))
    assert covered([never, POD], pod_1=[15, 45, 55]) == Coverage(3, 0, KINDS)

"""following.py: what two looks differ by."""

from __future__ import annotations

from dataclasses import replace

from lab.watch.following import Follower, Reloaded, drops, last_reload
from lab.watch.live import Hook, Interface, Look, UnderWay

SECOND = 10**9


def hook(program: int, generation: int | None = 1, at: str = "ingress") -> Hook:
    return Hook(at, "cil_from_container", program, generation, loaded_ns=program * SECOND)


def look(*hooks: Hook, at: int = 0, packets: int = 0, busy: bool = False, **more: int) -> Look:
    """Return a look at a node of one pod after `at` half seconds."""
    counts = {"rx_packets": packets, "tx_packets": 2 * packets, "rx_dropped": 0, "tx_dropped": 0} | more
    pod = Interface("lxc1", 40, "pod-1", True, **counts, hooks=hooks)
    metrics = {(0, 2): packets, (140, 1): packets // 10}
    under_way = (UnderWay("pod-1", (7,)),) if busy else ()
    return Look("demo", at, at * SECOND // 2, (pod,), metrics, 1, under_way)


def told(*looks: Look) -> list[tuple[Reloaded, ...]]:
    """Return what is told of each look, one a second."""
    follower = Follower()
    return [follower.follow(replace(each, clock_ns=number * SECOND)) for number, each in enumerate(looks)]


def test_the_first_look_tells_no_reload_and_no_rate() -> None:
    follower = Follower()
    assert follower.follow(look(hook(3))) == ()
    assert follower.rates is None


def test_a_new_program_is_a_reload_of_its_subject() -> None:
    before, after = look(hook(3), hook(4, at="egress")), look(hook(8, 2), hook(7, 2, at="egress"))
    assert told(before, after) == [(), (Reloaded("pod-1", 2, 8 * SECOND, (8, 7)),)]


def test_a_reload_under_way_is_told_when_it_is_over() -> None:
    before, after = look(hook(3), hook(4, at="egress")), look(hook(8, 2), hook(9, 2, at="egress"))
    between = look(hook(8, 1), hook(4, at="egress"), busy=True)
    assert told(before, between, after) == [(), (), (Reloaded("pod-1", 2, 9 * SECOND, (8, 9)),)]


def test_a_reload_that_was_rolled_back_is_none() -> None:
    assert told(look(hook(3)), look(hook(8), busy=True), look(hook(3))) == [(), (), ()]


def test_an_emptied_hook_is_no_reload() -> None:
    assert told(look(hook(3), hook(4, at="egress")), look(hook(3)), look()) == [(), (), ()]


def test_rates_are_by_the_second_of_a_clock_that_nobody_sets() -> None:
    follower = Follower()
    follower.follow(look(at=0, packets=100))
    follower.follow(replace(look(at=1, packets=200, rx_dropped=3), time_ns=0))
    assert follower.rates is not None
    assert follower.rates.seconds == 0.5
    assert (follower.rates.received, follower.rates.sent) == ({"lxc1": 200.0}, {"lxc1": 400.0})
    assert follower.rates.dropped == {"lxc1": 6.0}
    assert drops(follower.rates.packets) == {(140, 1): 20.0}


def test_an_interface_that_was_made_again_has_no_rate_yet() -> None:
    follower = Follower()
    follower.follow(look(packets=100))
    made = look(at=2, packets=1)
    follower.follow(replace(made, interfaces=(replace(made.interfaces[0], ifindex=41),)))
    assert follower.rates is not None
    assert follower.rates.received == {}


def test_the_last_reload_is_that_of_the_newest_program() -> None:
    assert last_reload(look()) is None
    assert last_reload(look(hook(3), hook(9, None, at="xdp"))) == Reloaded("xdp", None, 9 * SECOND, (9,))

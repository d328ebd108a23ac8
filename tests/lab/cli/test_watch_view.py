"""watch_view.py: what a picture tells."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from lab.cli.watch_view import Picture
from lab.watch.live import Hook, Interface, Look, UnderWay

SECOND = 10**9
HOOK = Hook("ingress", "cil_from_container", 77, 3, loaded_ns=900 * SECOND)
POD = Interface("lxc1", 40, "pod-1", True, 100, 200, 0, 0, (HOOK,))
LOOK = Look("demo", 1000 * SECOND, 5 * SECOND, (POD,), {(0, 1): 1000, (140, 1): 7}, 3)


def lines(*looks: Look) -> list[str]:
    picture = Picture()
    for look in looks:
        picture.take(look)
    return list(picture.lines())


def later(**changes: object) -> Look:
    values = {"time_ns": 1002 * SECOND, "clock_ns": 7 * SECOND} | changes
    return replace(LOOK, **values)  # type: ignore[arg-type]


def test_the_first_look_tells_packets_in_all() -> None:
    first, drop, last, _ = lines(LOOK)
    assert first.endswith("load 3  forwarded 1000 in all, dropped 7 in all")
    assert drop == "  dropped: Missed tail call (ingress): 7 packets"
    assert last.startswith("  last reload: pod-1, generation 3, ")


def test_later_looks_tell_packets_a_second() -> None:
    first, drop, *_ = lines(LOOK, later(packets={(0, 1): 1020, (140, 1): 9, (133, 1): 1}))
    assert first.endswith("forwarded 10/s, dropped 2/s")
    assert drop == "  dropped: Policy denied (ingress): 1 packet, 0/s"


def test_reloads_stay_in_the_picture_and_those_under_way_have_their_process() -> None:
    hook = replace(HOOK, program_id=78, generation=4, loaded_ns=1001 * SECOND + 5 * 10**6)
    done = later(interfaces=(replace(POD, hooks=(hook,)),))
    under_way = replace(done, clock_ns=8 * SECOND, under_way=(UnderWay("host", (12, 13)), UnderWay("xdp", ())))
    told = lines(LOOK, done, under_way)
    assert told[2:4] == ["  reload of host under way by process 12, 13", "  reload of xdp under way"]
    assert told[4].endswith(".005  reload of pod-1, generation 4: 1 program")


def test_a_node_without_programs_says_so() -> None:
    empty = replace(LOOK, interfaces=(replace(POD, hooks=()),), packets={}, loads=None)
    assert lines(empty)[0].endswith("nothing loaded  forwarded 0 in all, dropped 0 in all")
    assert len(lines(empty)) == 2


def test_a_load_that_is_not_told_is_left_out() -> None:
    hook = replace(HOOK, program_id=78, generation=None, loaded_ns=1001 * SECOND)
    told = lines(LOOK, later(interfaces=(replace(POD, hooks=(hook,)),)))
    assert told[2].endswith("  reload of pod-1: 1 program")


def test_a_narrow_terminal_has_one_name_for_a_pod_and_its_interface() -> None:
    host = replace(POD, name="cilium_host", subject="host", up=False, hooks=())
    picture = Picture()
    picture.take(replace(LOOK, interfaces=(POD, host)))
    out = io.StringIO()
    console = Console(file=out, width=80)
    console.print(picture.drawn(80))
    (pod,) = [line.split() for line in out.getvalue().splitlines() if line.startswith("pod-1 ")]
    assert pod == ["pod-1", "-", "-", "-", "ingress", "cil_from_container", "77", "3", "100", "s"]
    assert "\ncilium_host (down) " in out.getvalue()
    assert "lxc1" not in out.getvalue()

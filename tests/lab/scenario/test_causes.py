"""What has dropped lost packets is told by the drops of the same flow that fit their times."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from lab.scenario.causes import Causes
from lab.traffic.flows import Flow
from lab.watch.attribution import Ownership
from lab.watch.drop_events import DropEvent
from lab.watch.drops import Dropped, Namespace
from lab.watch.kernel_drops import KernelDrop
from lab.watch.packet import ICMP, UDP, Packet

FLOW = Flow("there", "a", "10.0.0.1", "b", "10.0.0.2", port=7)
REFUSED = Flow("refused", "a", "10.0.0.1", "b", "10.0.0.2", port=8, refused=True)
ALIKE = replace(FLOW, name="there as well", fresh=True)
REQUEST = Packet(ip_address("10.0.0.1"), ip_address("10.0.0.2"), UDP, bytes((9, 9, 0, 7)))
REPLY = Packet(REQUEST.target, REQUEST.source, UDP, bytes((0, 7, 9, 9)))
OTHER = Packet(REQUEST.source, ip_address("10.0.0.3"), UDP, bytes((9, 9, 0, 7)))
MISSED, INVALID = 140, 134
MS = 1_000_000


def program(ms: float, packet: Packet = REQUEST, reason: int = MISSED) -> DropEvent:
    return DropEvent(round(ms * MS), reason, "bpf_lxc.c", 214, 101, 5, packet)


def kernel(ms: float, reason: str, packet: Packet = REQUEST) -> KernelDrop:
    return KernelDrop(round(ms * MS), 0, 1, reason, 5, "lxc1", packet)


def told(*lost_ms: float, programs: tuple[DropEvent, ...] = (), drops: tuple[KernelDrop, ...] = (), **more: Any) -> str:
    spaces = {1: Namespace("n", "node")}
    dropped = Dropped(Ownership([FLOW, ALIKE, REFUSED]), {"n": programs}, drops, True, {}, spaces, ())
    generations = more.get("generations", [12])
    return Causes(dropped, lambda *_: generations).text(more.get("flow", "there"), [round(ms * MS) for ms in lost_ms])


def test_the_cause_of_all_losses_has_no_count() -> None:
    assert told(1, 2, programs=(program(1.1), program(2.1, REPLY))) == (
        "dropped by generation 12, Missed tail call, bpf_lxc.c:214"
    )


def test_several_causes_are_told_the_most_frequent_first() -> None:
    programs = (program(1.1), program(2.1, reason=INVALID), program(3.1, reason=INVALID))
    assert told(1, 2, 3, 4, programs=programs, drops=(kernel(4.1, "IP_INNOROUTES"),)) == (
        "dropped by generation 12, Invalid packet, bpf_lxc.c:214 (2)"
        " and by generation 12, Missed tail call, bpf_lxc.c:214 (1)"
        " and by the kernel, IP_INNOROUTES at 0x0 (1)"
    )


def test_a_load_that_is_not_known_for_sure_is_not_named() -> None:
    assert told(1, programs=(program(1.1),), generations=[]) == "dropped by a program, Missed tail call, bpf_lxc.c:214"
    assert told(1, programs=(program(1.1),), generations=[7, 8]).startswith("dropped by generation 7 or 8, Missed")


def test_drops_that_do_not_fit_are_not_told() -> None:
    assert told(2, programs=(program(1.9),)) == ""
    assert told(2, programs=(program(1003),)) == ""
    assert told(2, programs=(program(2.1, OTHER),)) == ""
    assert told(2, drops=(kernel(2.1, "TCP_OLD_DATA"),)) == ""


def test_only_of_losses_it_is_asked_which_loads_there_were() -> None:
    """A sweep has thousands of drops that are nobody's loss, and tens of thousands of reloads."""
    asked: list[int] = []

    def generations(node: str, endpoint_id: int, at_ns: int) -> list[int]:
        asked.append(at_ns)
        return [12]

    programs = tuple(program(ms) for ms in range(1, 1000))
    dropped = Dropped(Ownership([FLOW]), {"n": programs}, (), True, {}, {1: Namespace("n", "node")}, ())
    assert Causes(dropped, generations).text("there", [round(500.5 * MS)]).endswith(":214")
    assert asked == [501 * MS]


def test_a_flow_that_looks_like_another_has_the_drops_of_both() -> None:
    assert told(1, 3, programs=(program(1.1), program(2.1), program(3.1)), flow=ALIKE.name).endswith(":214")


def test_the_answer_to_a_refused_packet_is_an_icmp_error() -> None:
    """Nobody has the socket for which the packet is; what is lost is the error that quotes it."""
    packet = Packet(REQUEST.source, REQUEST.target, UDP, bytes((9, 9, 0, 8, 0, 8, 0, 0)))
    header = bytes((0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0)) + REQUEST.source.packed + REQUEST.target.packed
    error = Packet(REQUEST.target, REQUEST.source, ICMP, bytes((3, 3, 0, 0, 0, 0, 0, 0)) + header + packet.data)
    drops = (kernel(1.1, "NO_SOCKET", packet),)
    assert told(1, drops=drops, flow=REFUSED.name) == ""
    assert told(1, programs=(program(1.2, error),), drops=drops, flow=REFUSED.name).endswith("bpf_lxc.c:214")


def test_packets_that_were_sent_at_once_have_a_drop_each() -> None:
    programs = tuple(program(2) for _ in range(4))
    assert told(1, 1, 1.5, programs=programs) == "dropped by generation 12, Missed tail call, bpf_lxc.c:214"


def test_the_kernel_that_frees_what_a_program_has_dropped_is_no_cause_of_its_own() -> None:
    drops = (kernel(1.2, "TC_INGRESS"),)
    assert told(1, 1, programs=(program(1.1),), drops=drops).endswith(":214 (1)")
    assert told(1, drops=drops) == "dropped by a program that told nothing, TC_INGRESS on lxc1 in node"

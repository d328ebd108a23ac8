"""The rings, with a program that sends what it is told to."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from select import select

import pytest

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import EVENTS
from datapath.kernel import bpf
from datapath.kernel.cpus import cpu_ids
from datapath.kernel.map import Map, open_pin
from lab.cli.main import main
from lab.node import registry
from lab.node.maps import MapNotLoaded, open_map
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.perfring import PerfReader
from lab.watch import monitor as monitor_module
from lab.watch.drop_events import DropEvents
from lab.watch.events import Drop
from lab.watch.monitor import Monitor, MonitorBusy
from tests.lab.labs import cli, removed, start, unique_name

pytestmark = pytest.mark.privileged

SCHED_CLS, PERF_EVENT_OUTPUT, BPF_F_CURRENT_CPU = 3, 25, 0xFFFFFFFF
PACKET = bytes(12) + b"\x08\x06" + bytes(50)
MESSAGE = struct.pack("<BBHIIHH", 1, 133, 101, 7, len(PACKET), len(PACKET), 1)
MESSAGE += struct.pack("<IIIHBbI", 1001, 1002, 102, 7, 1, 0, 17)


def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def load_imm64(dst: int, value: int, src: int = 0) -> bytes:
    low, high = struct.unpack("<ii", value.to_bytes(8, "little"))
    return insn(0x18, dst, src, imm=low) + insn(0, imm=high)


def program(map_fd: int, message: bytes, captured: int) -> int:
    """Load a program that sends `message` and the first `captured` bytes of its packet."""
    size = -(-len(message) // 8) * 8
    words = struct.unpack(f"<{size // 4}i", message.ljust(size, b"\0"))
    code = b"".join(insn(0x62, 10, off=-size + 4 * at, imm=word) for at, word in enumerate(words))
    code += load_imm64(2, map_fd, src=1) + load_imm64(3, captured << 32 | BPF_F_CURRENT_CPU)
    code += insn(0xBF, 4, 10) + insn(0x07, 4, imm=-size) + insn(0xB7, 5, imm=len(message))
    code += insn(0x85, imm=PERF_EVENT_OUTPUT) + insn(0xB7, 0) + insn(0x95)
    fd = bpf.prog_load(SCHED_CLS, code, "GPL")
    assert fd >= 0, os.strerror(-fd)
    return fd


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(NodeSpec(unique_name(), pods=0)) as node:
        yield node


Send = Callable[[int], None]


@pytest.fixture
def send(node: Node) -> Iterator[Send]:
    """Pin a map for events; give a function that sends some."""
    with ExitStack() as stack:
        pin_events(node)
        stack.callback((node.datapath_config().globals / EVENTS).unlink)

        yield lambda count: send_message(node, MESSAGE, count)


def send_message(node: Node, message: bytes, count: int) -> None:
    """Have a program send a message several times."""
    with open_pin(node.datapath_config().globals / EVENTS) as pinned:
        fd = program(pinned.fd, message, len(PACKET))
        try:
            bpf.prog_test_run(fd, PACKET, repeat=count)
        finally:
            os.close(fd)


def pin_events(node: Node) -> Path:
    path = node.datapath_config().globals / EVENTS
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = bpf.map_create(MapType.PERF_EVENT_ARRAY, 4, 4, cpu_ids())
    try:
        bpf.obj_pin(fd, path)
    finally:
        os.close(fd)
    return path


def test_every_event_with_its_packet(node: Node, send: Send) -> None:
    """Several times the size of the ring in all, so that records lie across its end."""
    with Monitor(node) as monitor:
        for _ in range(20):
            send(150)
            found = list(monitor.read(1.0))
            while len(found) < 150:
                more = list(monitor.read(1.0))
                assert more, f"{len(found)} of 150"
                found += more
            assert {str(event) for event in found} == {
                "xx drop (Policy denied) flow 0x7 to endpoint 102, ifindex 17, file bpf_host.c:7, "
                "identity 1001->1002: arp"
            }
        assert list(monitor.read(0.0)) == []


def test_drops_of_a_version_that_is_not_known_are_counted(node: Node, send: Send) -> None:
    """They are not guessed, and not passed over in silence either; a trace of any version is no drop."""
    with DropEvents(node) as events:
        send(1)
        for kind in (1, 4):
            send_message(node, bytes([kind]) + MESSAGE[1:14] + struct.pack("<H", 9) + MESSAGE[16:], 1)
        events.drain()
        assert (len(events.events), events.unknown, events.lost) == (1, 1, 0)


def test_lost_events_are_counted(node: Node, send: Send) -> None:
    with open_pin(node.datapath_config().globals / EVENTS) as pinned, PerfReader(pinned, pages=1) as reader:
        send(1000)
        got = reader.read(1.0)
        assert reader.lost == 1000 - len(got)
        # That some were lost is said with the next one that fits.
        send(1)
        got += reader.read(1.0)
        assert sum(sample.lost for sample in got) + sum(1 for sample in got if not sample.lost) == 1001
        assert any(sample.lost for sample in got)
        assert reader.lost == sum(sample.lost for sample in got)


def test_lost_events_are_still_known_when_the_map_is_another(node: Node, send: Send) -> None:
    path = node.datapath_config().globals / EVENTS
    with Monitor(node, pages=1) as monitor:
        send(1000)
        found = list(monitor.samples(1.0))
        lost = monitor.lost
        assert lost == 1000 - len(found)
        path.unlink()
        pin_events(node)
        assert list(monitor.samples(0)) == []
        send(1)
        assert len(list(monitor.samples(1.0))) == 1
        assert monitor.lost == lost > 0


def test_a_node_has_one_reader_of_events(node: Node, send: Send) -> None:
    with Monitor(node), pytest.raises(MonitorBusy, match=node.name), Monitor(node):
        pass
    with Monitor(node) as again:
        send(1)
        assert [type(event) for event in again.read(1.0)] == [Drop]


def test_reader_leaves_nothing_in_the_map(node: Node, send: Send) -> None:
    with Monitor(node) as monitor:
        send(1)
        assert list(monitor.read(1.0))
    # Without a ring the program's call fails, and nobody is the worse for it.
    send(1)
    with Monitor(node) as monitor:
        assert list(monitor.read(0.0)) == []


def test_a_replaced_map_is_followed(node: Node, send: Send) -> None:
    with Monitor(node) as monitor:
        (node.datapath_config().globals / EVENTS).unlink()
        pin_events(node)
        assert list(monitor.read(0.0)) == []
        send(1)
        assert [type(event) for event in monitor.read(1.0)] == [Drop]


def test_a_map_that_is_replaced_while_it_is_opened_is_followed(
    node: Node, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = node.datapath_config().globals / EVENTS

    def replaced_behind(node: Node, name: str) -> Map:
        opened = open_map(node, name)
        monkeypatch.undo()
        path.unlink()
        pin_events(node)
        return opened

    monkeypatch.setattr(monitor_module, "open_map", replaced_behind)
    with Monitor(node) as monitor:
        assert list(monitor.read(0.0)) == []
        send(1)
        assert [type(event) for event in monitor.read(1.0)] == [Drop]


def test_a_pin_that_a_migration_has_moved_aside_is_waited_for(
    node: Node, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it goes: between two looks at it as well."""
    path = node.datapath_config().globals / EVENTS
    with Monitor(node) as monitor:
        path.unlink()
        monkeypatch.setattr(type(path), "exists", lambda _: True)
        assert list(monitor.read(0.0)) == []
        monkeypatch.undo()
        pin_events(node)
        assert list(monitor.read(0.0)) == []
        send(1)
        assert [type(event) for event in monitor.read(1.0)] == [Drop]


def test_a_node_without_programs_has_no_events(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MapNotLoaded, match="no map cilium_events"), Monitor(node):
        pass
    assert main(["monitor", node.name]) == 1
    assert f"reloadlab reload {node.name}" in capsys.readouterr().err


def test_command_ends_when_the_lab_is_removed_by_force() -> None:
    with removed(unique_name()) as name:
        node = Node.up(NodeSpec(name, pods=0))
        pin_events(node)
        with start(cli("monitor", name)) as process:
            assert process.stdout is not None
            while not select([process.stdout], [], [], 0.1)[0]:
                send_message(node, MESSAGE, 1)
            registry.remove(name, force=True)
            try:
                _, err = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 1
        assert re.fullmatch(rf"reloadlab: no lab {name}[^\n]*\n", err)


def test_command_refuses_an_unknown_endpoint(node: Node, send: Send, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", f"{node.name}/nope", "--seconds", "0.1"]) == 1
    assert "has no endpoint nope" in capsys.readouterr().err
    assert main(["monitor", node.name, "--seconds", "0.1"]) == 0
    assert capsys.readouterr().out == ""

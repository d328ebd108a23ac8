"""What is left over of a node: pins, programs, tcx programs, XDP programs, maps and sockets that this process keeps."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_by_id
from datapath.kernel.libc import check, function
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import enter
from lab.agent.agent import Agent
from lab.node.topology import NODE
from lab.system.tools import run
from lab.watch import invariants
from lab.watch.invariants import Expected, baseline
from lab.watch.journal import Journal
from tests.lab.watch.faults import program_at, violations
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

_BPF_PROG_ATTACH, _BPF_PROG_DETACH, _BPF_TCX_INGRESS = 8, 9, 46


def test_a_reload_keeps_what_it_may_keep(agent: Agent) -> None:
    """A netlink socket and the shared maps stay open for the next reload, in this process."""
    before = baseline(agent)
    outcomes = [agent.reload(subject) for subject in agent.subjects]
    assert violations(agent, before, *outcomes) == []


@pytest.mark.parametrize("place", ["tc/globals/acme", "elsewhere", "tc/globals/sub/acme"])
def test_a_pin_that_no_object_declares_is_found(sound_node: Agent, place: str) -> None:
    before, path = baseline(sound_node), sound_node.config.bpffs / place
    made = not path.parent.exists()
    path.parent.mkdir(exist_ok=True)
    fd = bpf.map_create(MapType.HASH, 4, 4, 1)
    bpf.obj_pin(fd, path)
    os.close(fd)
    try:
        found = violations(sound_node, before)
        assert found
        assert all(line.startswith("invariant 9: ") and "pin" in line for line in found)
        assert any(place in line or "map acme is pinned, and no object declares it" in line for line in found)
        declared = Expected(pins=frozenset({"acme", "elsewhere", "sub"}))
        assert violations(sound_node, before, expected=declared) == []
    finally:
        path.unlink()
        if made:
            path.parent.rmdir()


def test_a_calls_map_that_this_process_keeps_is_found(sound_node: Agent) -> None:
    """As of a load that forgot to close it: nothing else uses it."""
    before = baseline(sound_node)
    fd = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 50, name="cilium_calls_00")
    try:
        ident = bpf.map_info(fd).id
        text = f"this process keeps map {ident} (cilium_calls_00), which nothing uses"
        assert violations(sound_node, before) == [f"invariant 9: {text}"]
    finally:
        os.close(fd)
    assert violations(sound_node, before) == []


def test_the_maps_of_another_node_of_the_same_process_are_not_ours(sound_node: Agent) -> None:
    before = baseline(sound_node)
    fds = [bpf.map_create(MapType.HASH, 4, 4, 1, name="one_of_a_kind")]
    try:
        assert violations(sound_node, before) == []
        fds.append(bpf.map_create(MapType.HASH, 4, 4, 1, name="one_of_a_kind"))
        assert len(violations(sound_node, before)) == 1, "one of each name may stay open until the loader looks again"
    finally:
        for fd in fds:
            os.close(fd)


def test_a_netlink_socket_that_stays_open_is_found(sound_node: Agent) -> None:
    before = baseline(sound_node)
    with NetlinkSocket(sound_node.node.netns(NODE)):
        (found,) = violations(sound_node, before)
    assert found.startswith("invariant 9: this process has ")
    assert "netlink sockets in the node open instead of" in found


def test_a_netlink_socket_is_found_beside_that_of_the_journal(sound_node: Agent) -> None:
    netns = sound_node.node.netns(NODE)
    with Journal(netns) as journal:
        before = baseline(sound_node)
        with NetlinkSocket(netns):
            (found,) = invariants.check(sound_node, before, journal=journal)
    assert "netlink sockets in the node open instead of" in found.what


def test_a_descriptor_of_a_namespace_that_stays_open_is_found(sound_node: Agent) -> None:
    before = baseline(sound_node)
    fd = os.open(sound_node.node.netns("pod-1"), os.O_RDONLY)
    try:
        assert violations(sound_node, before) == [
            "invariant 9: this process has 1 descriptors of its namespaces open instead of 0"
        ]
    finally:
        os.close(fd)


def test_a_namespace_that_another_thread_enters_again_and_again_is_no_leak(sound_node: Agent) -> None:
    """As a capture does, which wants to know the names of new interfaces."""
    before, done = baseline(sound_node), threading.Event()

    def enter_it() -> None:
        while not done.is_set():
            with enter(sound_node.node.netns(NODE)):
                time.sleep(0.02)
            time.sleep(0.002)

    thread = threading.Thread(target=enter_it)
    thread.start()
    try:
        assert violations(sound_node, before) == []
    finally:
        done.set()
        thread.join()


def attach_or_detach(command: int, netns: Path, ifindex: int, fd: int) -> None:
    """BPF_PROG_ATTACH or BPF_PROG_DETACH at the tcx ingress hook; the lab itself never does it."""
    attr = struct.pack("=6IQ", ifindex, fd, _BPF_TCX_INGRESS, 0, 0, 0, 0)
    syscall = function("syscall", ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, result=ctypes.c_long)
    with enter(netns):
        check(syscall(bpf.SYS_BPF, command, attr, len(attr)), "bpf(2)")


@contextmanager
def tcx(agent: Agent, ifname: str, program_id: int) -> Iterator[None]:
    """Attach a program at a tcx ingress hook for the time of a block."""
    with NetlinkSocket(agent.node.netns(NODE)) as netlink:
        ifindex = netlink.ifindex(ifname)
    netns = agent.node.netns(NODE)
    with program_by_id(program_id) as fd:
        attach_or_detach(_BPF_PROG_ATTACH, netns, ifindex, fd)
        try:
            yield
        finally:
            attach_or_detach(_BPF_PROG_DETACH, netns, ifindex, fd)


def test_a_program_of_ours_at_a_tcx_hook_is_found(sound_node: Agent) -> None:
    before, ifname = baseline(sound_node), sound_node.node.pod("pod-1").ifname
    program = program_at(sound_node, ifname, Direction.INGRESS).program_id
    try:
        with tcx(sound_node, ifname, program):
            assert f"invariant 1: {ifname} ingress: cil_from_contai is attached by tcx as well" in violations(
                sound_node, before
            )
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("no tcx before Linux 6.6")
    assert violations(sound_node, before) == []


def test_an_xdp_program_is_found(sound_node: Agent) -> None:
    before = baseline(sound_node)
    insns = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # return XDP_PASS
    fd = bpf.prog_load(6, insns, "GPL", name="acme_xdp")
    path = sound_node.config.bpffs / "xdp"
    bpf.obj_pin(fd, path)
    os.close(fd)
    try:
        run(nsenter(sound_node.node.netns(NODE), "ip", "link", "set", "cilium_net", "xdpgeneric", "pinned", str(path)))
    finally:
        path.unlink()
    try:
        (found,) = violations(sound_node, before)
        assert found.startswith("invariant 14: interface cilium_net: XDP programs changed from () to (")
    finally:
        run(nsenter(sound_node.node.netns(NODE), "ip", "link", "set", "cilium_net", "xdpgeneric", "off"))

"""What is left over of a node: pins, programs, tcx programs, XDP programs, maps and sockets that this process keeps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datapath.base.bpftypes import MapType, ProgType
from datapath.endpoint import Attachment
from datapath.kernel import bpf, links
from datapath.kernel.links import AttachType
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import enter
from lab.agent.agent import Agent
from lab.node.topology import NODE
from lab.system.pace import SLOWNESS_VARIABLE
from lab.system.tools import run
from lab.watch import invariants
from lab.watch.checks.leaks import CLOSE_SECONDS
from lab.watch.invariants import Expected, baseline
from lab.watch.journal import Journal
from tests.datapath.support import NEEDS_TCX, TCX_NEXT, XDP_PASS, program
from tests.lab.watch.faults import violations
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


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


def test_the_names_that_iproute2_gives_to_its_directory_are_no_pins(sound_node: Agent) -> None:
    """They are there once tc has loaded a program, the first time in an upgrade say. Other links are told."""
    before, path = baseline(sound_node), sound_node.config.bpffs / "xdp"
    for target, told in (("/sys/fs/bpf/tc/", []), ("tc", []), ("tc/nowhere", ["invariant 9: pin xdp is left over"])):
        path.symlink_to(target)
        try:
            assert violations(sound_node, before) == told
        finally:
            path.unlink()


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


def test_what_another_thread_opens_for_a_moment_may_take_as_long_as_the_machine_is_slow(
    sound_node: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = baseline(sound_node)
    monkeypatch.setenv(SLOWNESS_VARIABLE, "50")
    closing = threading.Timer(3 * CLOSE_SECONDS, os.close, [os.open(sound_node.node.netns("pod-1"), os.O_RDONLY)])
    closing.start()
    try:
        assert violations(sound_node, before) == []
    finally:
        closing.join()


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


@contextmanager
def tcx(agent: Agent, ifname: str, name: str) -> Iterator[int]:
    """Attach a program at a tcx ingress hook for the time of a block; yield its id."""
    with NetlinkSocket(agent.node.netns(NODE)) as netlink:
        ifindex = netlink.ifindex(ifname)
    with program(TCX_NEXT, name=name) as fd:
        with enter(agent.node.netns(NODE)):
            link = links.create(fd, ifindex, AttachType.TCX_INGRESS)
        try:
            yield bpf.prog_id(fd)
        finally:
            links.detach(link)
            os.close(link)


@NEEDS_TCX
def test_a_program_of_ours_at_a_tcx_hook_is_found(sound_node: Agent) -> None:
    before, ifname = baseline(sound_node), sound_node.node.pod("pod-1").ifname
    filter_ = f"cil_from_container-{ifname}"
    with tcx(sound_node, ifname, "cil_from_container"):
        assert violations(sound_node, before) == [
            f"invariant 1: {ifname} ingress: 2 programs instead of cil_from_container: cil_from_contai (tcx), {filter_}"
        ]
    assert violations(sound_node, before) == []


@NEEDS_TCX
def test_a_program_of_others_at_a_tcx_hook_is_found(sound_node: Agent) -> None:
    """It runs before ours, and nobody has taken it away again; one that goes is missed."""
    before, ifname = baseline(sound_node), sound_node.node.pod("pod-1").ifname
    with tcx(sound_node, ifname, "acme") as program:
        words = f"{ifname} ingress: tcx program acme (id {program}) runs before cil_from_container"
        left = f"invariant 9: {ifname} ingress: tcx program {program} is left over"
        assert violations(sound_node, before) == [f"invariant 1: {words}, which sees only what that passes on", left]
        warned = Expected(warnings=frozenset({"tcx program acme"}))
        assert violations(sound_node, before, expected=warned) == [left]
        before = baseline(sound_node)
    assert violations(sound_node, before) == [f"invariant 10: {ifname} ingress: foreign filter acme is gone"]


@NEEDS_TCX
def test_a_tcx_link_is_held_to_its_pin(sound_node: Agent) -> None:
    """Attached by tc where tcx was asked for; then by a link that has lost its pin, and by one pinned elsewhere."""
    pod = sound_node.node.pod("pod-1")
    pin = sound_node.config.endpoint_links(pod.endpoint_id) / "cil_from_container"
    hook = f"invariant 1: {pod.ifname} ingress: "
    sound_node.configure(attach=Attachment.TCX)
    try:
        wrong = [line for line in violations(sound_node, baseline(sound_node)) if line.startswith(hook)]
        assert wrong == [f"{hook}cil_from_container-{pod.ifname} is attached by tc instead of tcx"]
        for subject in sound_node.subjects:
            sound_node.reload(subject)
        before = baseline(sound_node)
        assert violations(sound_node, before) == []
        with links.pinned(pin) as link:
            assert link is not None
            pin.unlink()
            assert violations(sound_node, before) == [f"{hook}the tcx link of cil_from_container is not pinned"]
            bpf.obj_pin(link, pin.with_name("elsewhere"))
            assert any("elsewhere is left over" in line for line in violations(sound_node, before))
            pin.with_name("elsewhere").rename(pin)
        assert violations(sound_node, before) == []
    finally:
        sound_node.configure(attach=Attachment.TC)
        for subject in sound_node.subjects:
            sound_node.reload(subject)
    assert violations(sound_node, baseline(sound_node)) == []


def test_an_xdp_program_is_found(sound_node: Agent) -> None:
    before = baseline(sound_node)
    path = sound_node.config.bpffs / "xdp"
    with program(XDP_PASS, ProgType.XDP, "acme_xdp") as fd:
        bpf.obj_pin(fd, path)
    try:
        run(nsenter(sound_node.node.netns(NODE), "ip", "link", "set", "cilium_net", "xdpgeneric", "pinned", str(path)))
    finally:
        path.unlink()
    try:
        (found,) = violations(sound_node, before)
        assert found.startswith("invariant 14: interface cilium_net: XDP programs changed from () to (")
    finally:
        run(nsenter(sound_node.node.netns(NODE), "ip", "link", "set", "cilium_net", "xdpgeneric", "off"))

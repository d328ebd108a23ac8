"""Native devices with any name, that appear, disappear, are renamed and made anew, also between two system calls."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import count
from operator import methodcaller
from pathlib import Path

import pytest

from datapath.base.mapnames import calls_map
from datapath.base.names import check_ifname
from datapath.endpoint import Attachment, Vlan
from datapath.errors import BpfError, InvalidName, LinkNotFound, NetlinkError
from datapath.kernel.hooks import Direction, HookEmptied
from datapath.kernel.netlink import NetlinkSocket, pack_attribute, pack_message
from datapath.reload.plans import CILIUM_NET, XDP_SUBJECT
from datapath.reload.xdp import CIL_XDP_ENTRY
from lab.agent.agent import Agent
from lab.agent.gated import under_gates
from lab.cli.proofs import spread
from lab.gates.call import Call
from lab.node.links import delete_link
from lab.node.node import Node
from lab.node.topology import HOST, HOST_ENDPOINT, NODE, OUTSIDE, UPLINK
from lab.system.tools import run
from lab.traffic.framesocket import FrameSocket
from lab.watch.checks.hooks import check_hooks
from lab.watch.checks.pins import check_orphans, check_pins
from lab.watch.checks.xdp import check_xdp
from lab.watch.metrics import INGRESS, packets
from lab.watch.snapshot import take
from scenarios.frames import ETH_P_IP, datagram, eth, ipv4
from tests.datapath.support import NEEDS_TCX
from tests.lab.labs import loaded_node
from tests.netns import nsenter

pytestmark = [pytest.mark.privileged]

RTM_SETLINK, IFLA_IFNAME = 19, 3
DEVICE = "d0.100"
ODD = (DEVICE, "d0-100", "a.o.new", "q'\"$;*\\", "x\udcff\udcfe", "-rf", "\x01\x1b", "é\u2003")
SAMPLE = int(os.environ.get("RELOADLAB_PLACES", "5"))
"""Calls of a reload that change something, of 73 that the host's has by tc; `make faults` tries all of them.

Each event happens at other ones.
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Path]]:
    templates = tmp_path_factory.mktemp("templates")
    with loaded_node("devices", templates, pods=1) as node:
        yield node, templates


@pytest.fixture
def agent(lab: tuple[Node, Path]) -> Iterator[Agent]:
    node, templates = lab
    with Agent(node, templates=templates) as made:
        yield made
        made.configure(devices=(), defines=(), node=replace(made.config.node, vlans=()))
        attach_by(made, Attachment.TC)
        made.reload(HOST)
        made.reload(XDP_SUBJECT)
        made.configure(xdp=None)
        assert problems(made) == xdp_problems(made) == []


@pytest.fixture
def netlink(lab: tuple[Node, Path]) -> Iterator[NetlinkSocket]:
    with NetlinkSocket(lab[0].netns(NODE)) as socket:
        yield socket


def make(node: Node, name: str) -> None:
    """Make a device with a peer; one whose name is odd by renaming it."""
    netns = node.netns(NODE)
    run(nsenter(netns, "ip", "link", "add", "made", "type", "veth", "peer", "name", f"p{os.urandom(4).hex()}"))
    with NetlinkSocket(netns) as netlink:
        rename(netlink, "made", name)


def rename(netlink: NetlinkSocket, name: str, new: str) -> None:
    body = struct.pack("=BxHiII", 0, 0, netlink.ifindex(name), 0, 0)
    netlink.request("rename", pack_message(RTM_SETLINK, body + pack_attribute(IFLA_IFNAME, os.fsencode(new) + b"\0")))


def delete(node: Node, name: str) -> None:
    with NetlinkSocket(node.netns(NODE)) as netlink:
        netlink.request("delete", delete_link(netlink.ifindex(name)))


def attach_by(agent: Agent, attach: Attachment) -> None:
    """Have all programs of the node attached in this way."""
    if agent.config.attach is not attach:
        agent.configure(attach=attach)
        agent.reload_all()


def problems(agent: Agent) -> list[str]:
    """Return what is wrong with the devices that are there: hooks, pins, and files of devices that are none."""
    devices, links = agent.config.devices, agent.loader.links()
    there = tuple(name for name in devices if name in links)
    agent.configure(devices=there)
    now = take(agent.node)
    found = [str(violation) for check in (check_hooks, check_pins, check_orphans) for violation in check(agent, now)]
    agent.configure(devices=devices)
    files = {name for name in os.listdir(agent.config.state / f"{HOST_ENDPOINT}") if "netdev" in name}
    if files != (wanted := {f"bpf_netdev_{name}.o" for name in there}):
        found.append(f"objects {files}, not {wanted}")
    pins = {name for name in now.pins if "netdev" in name}
    if pins != (wanted := {calls_map(links[name].ifindex, "netdev_") for name in (CILIUM_NET, *there)}):
        found.append(f"pins {pins}, not {wanted}")
    return found


def xdp_problems(agent: Agent) -> list[str]:
    """Return what is wrong with the devices that are there at XDP: hooks, links, pins and files."""
    devices, links = agent.config.devices, agent.loader.links()
    there = () if agent.config.xdp is None else tuple(name for name in devices if name in links)
    agent.configure(devices=there)
    now = take(agent.node)
    found = [str(violation) for violation in (*check_xdp(agent, now, now), *check_orphans(agent, now))]
    agent.configure(devices=devices)
    files = {path.name for path in agent.config.state.glob("xdp/*.o")}
    if files != (wanted := {f"bpf_xdp_{name}.o" for name in there}):
        found.append(f"objects {files}, not {wanted}")
    pins = {name for name in now.pins if name.startswith("cilium_calls_xdp_")}
    if pins != (wanted := {calls_map(links[name].ifindex, "xdp_") for name in there}):
        found.append(f"pins {pins}, not {wanted}")
    pinned = set(agent.config.devices_links.glob(f"*/links/{CIL_XDP_ENTRY}"))
    if pinned != (places := {agent.config.device_links(name) / CIL_XDP_ENTRY for name in there}):
        found.append(f"links {pinned}, not {places}")
    return found


def programs(agent: Agent, name: str) -> list[str]:
    now = take(agent.node)
    return [item.name for direction in Direction for item in now.filters.get((name, direction), ())]


@NEEDS_TCX
def test_links_of_devices_of_any_name_are_pinned(agent: Agent) -> None:
    """By tcx and at XDP; a dot is a hyphen there, so that of two names that differ in it one is no device."""
    names = tuple(name for name in ODD if name != "d0-100")
    for name in names:
        make(agent.node, name)
    try:
        for devices in (names, names[1:]):
            agent.configure(devices=devices, xdp="native")
            attach_by(agent, Attachment.TCX)
            for subject in (XDP_SUBJECT, HOST):
                for _ in range(2):
                    assert agent.reload(subject).warnings == ()
            assert problems(agent) == xdp_problems(agent) == []
            for name in devices:
                found = {path.name for path in agent.config.device_links(name).iterdir()}
                assert found == {"cil_from_netdev", "cil_to_netdev", CIL_XDP_ENTRY}
        assert not agent.config.device_links(DEVICE).parent.exists()
    finally:
        for name in names:
            delete(agent.node, name)


def test_devices_of_any_name_have_their_own_programs(agent: Agent) -> None:
    """Each has its own object and programs, and loses them when it is no device any more."""
    for name in ODD:
        make(agent.node, name)
    try:
        agent.configure(devices=ODD)
        assert agent.reload(HOST).warnings == ()
        assert problems(agent) == []
        for name in ODD:
            assert programs(agent, name) == [f"cil_from_netdev-{name}", f"cil_to_netdev-{name}"]
        agent.configure(devices=ODD[1:])
        agent.reload(HOST)
        assert problems(agent) == []
        assert programs(agent, DEVICE) == []
    finally:
        for name in ODD:
            delete(agent.node, name)


def test_every_name_that_the_kernel_takes_is_taken(agent: Agent, netlink: NetlinkSocket) -> None:
    """Of all bytes; a percent sign is a pattern to the kernel, not a name."""
    make(agent.node, "name")
    present = "name"
    try:
        for byte in sorted(set(range(1, 256)) - {ord("%")}):
            wanted = os.fsdecode(b"a" + bytes([byte]) + b"b")
            try:
                rename(netlink, present, wanted)
            except NetlinkError as error:
                if error.errno != errno.EINVAL:
                    raise
                with pytest.raises(InvalidName):
                    check_ifname(wanted)
            else:
                present = check_ifname(wanted)
    finally:
        delete(agent.node, present)


def test_a_device_that_appears_later_is_loaded_then(agent: Agent) -> None:
    agent.configure(devices=(DEVICE,))
    assert agent.reload(HOST).warnings == (f"device {DEVICE} does not exist: left out",)
    make(agent.node, DEVICE)
    assert agent.reload(HOST).warnings == ()
    assert len(programs(agent, DEVICE)) == 2
    delete(agent.node, DEVICE)


def test_a_device_that_takes_a_name_gets_programs_of_its_own(agent: Agent, netlink: NetlinkSocket) -> None:
    for name in ("one", "two"):
        make(agent.node, name)
    agent.configure(devices=("one",))
    agent.reload(HOST)
    rename(netlink, "one", "three")
    rename(netlink, "two", "one")
    agent.reload(HOST)
    assert problems(agent) == []
    assert (programs(agent, "one"), programs(agent, "three")) == (["cil_from_netdev-one", "cil_to_netdev-one"], [])
    for name in ("one", "three"):
        delete(agent.node, name)


@contextmanager
def device(node: Node) -> Iterator[None]:
    """Have the device for the time of a block; whatever has become of it is removed at the end."""
    make(node, DEVICE)
    try:
        yield
    finally:
        with NetlinkSocket(node.netns(NODE)) as netlink:
            names = netlink.interfaces().keys() & {DEVICE, "another"}
        for name in names:
            delete(node, name)


def made_anew(node: Node) -> None:
    delete(node, DEVICE)
    make(node, DEVICE)


def renamed(node: Node) -> None:
    with NetlinkSocket(node.netns(NODE)) as netlink:
        rename(netlink, DEVICE, "another")


def gone(node: Node) -> None:
    delete(node, DEVICE)


@contextmanager
def failing_for_want_of_it() -> Iterator[None]:
    """Accept that a reload fails because the device is gone, or was made anew, and for no other reason."""
    try:
        yield
    except (LinkNotFound, HookEmptied):
        pass
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
    except BpfError as error:
        # Of a link: its interface is gone.
        if error.errno not in (errno.ENODEV, errno.ENOLINK):
            raise


EVENTS: list[Callable[[Node], None]] = [gone, made_anew, renamed]
WAYS = [
    pytest.param(HOST, Attachment.TC, problems, id="tc"),
    pytest.param(HOST, Attachment.TCX, problems, id="tcx", marks=NEEDS_TCX),
    pytest.param(XDP_SUBJECT, Attachment.TC, xdp_problems, id="xdp"),
]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(("subject", "attach", "wrong"), WAYS)
def test_a_device_that_changes_between_two_calls_leaves_nothing(
    agent: Agent,
    event: Callable[[Node], None],
    subject: str,
    attach: Attachment,
    wrong: Callable[[Agent], list[str]],
) -> None:
    """The reload ends, or fails and is undone; nothing of the device is left, and the next one has what is there."""
    agent.configure(devices=(DEVICE,), xdp="native" if subject == XDP_SUBJECT else None)
    attach_by(agent, attach)
    calls: list[Call] = []
    with device(agent.node):
        agent.reload(subject)
        under_gates(agent, lambda _: agent.reload(subject), calls.append, look_ups=False)
    places = [number for number, call in enumerate(calls) if call.changes]
    first = EVENTS.index(event) * len(places) // (len(EVENTS) * SAMPLE)
    for place in spread([*places[first:], *places[:first]], SAMPLE):
        with device(agent.node):
            agent.reload(subject)
            passed = count()

            def decide(_: Call, passed: Iterator[int] = passed, place: int = place) -> None:
                if next(passed) == place:
                    event(agent.node)

            with failing_for_want_of_it():
                under_gates(agent, lambda _: agent.reload(subject), decide, look_ups=False)
            assert next(passed) > place
            # Programs have the index and the MAC of the device that they were made for.
            mistaken = [str(found) for found in check_pins(agent, take(agent.node)) if " instead of " in found.what]
            assert mistaken == [], calls[place]
            agent.reload(subject)
            assert wrong(agent) == [], calls[place]


VLAN_5, PRIORITY_ALONE = b"\x81\x00\x00\x05", b"\x81\x00\xe0\x00"
FILTERED = 182, INGRESS


def packet_from(source: IPv4Address, target: IPv4Address, payload: bytes) -> bytes:
    return ipv4(source, target, datagram(source, target, payload, sport=7040, dport=7040))


def frame(dst: str, src: str, tag: bytes, packet: bytes) -> bytes:
    plain = eth(dst, src, ETH_P_IP, packet)
    return plain[:12] + tag + plain[12:]


def test_frames_of_a_vlan_are_dropped_from_the_wire_alone(agent: Agent) -> None:
    """From the wire, those of a VLAN are dropped, whatever is inside; a pod's are taken for what is inside."""
    node, pod = agent.node, agent.node.pod("pod-1")
    agent.configure(devices=(UPLINK,), defines=(("ENABLE_HOST_ROUTING", "1"),))
    agent.reload(HOST)
    uplink, health = node.facts.uplink, node.facts.health
    assert uplink.peer_mac is not None

    with ExitStack() as stack:
        outside, inside, beside = (
            stack.enter_context(FrameSocket(node.netns(name), device))
            for name, device in ((OUTSIDE, UPLINK), (pod.name, pod.inner_ifname), (health.name, health.inner_ifname))
        )

        def arrives(sent: bytes, at: FrameSocket, by: FrameSocket, payload: bytes, timeout: float) -> bool:
            by.send(sent)
            return at.receive(lambda data: payload in data, timeout=timeout) is not None

        for tag, wanted in ((b"", True), (PRIORITY_ALONE, True), (VLAN_5, False)):
            payload = b"from the wire " + tag
            before = packets(node).get(FILTERED, 0)
            packet = packet_from(node.spec.outside4.ip, pod.ipv4, payload)
            sent = frame(uplink.mac, uplink.peer_mac, tag, packet)
            assert arrives(sent, inside, outside, payload, 2.0 if wanted else 0.2) == wanted, tag
            assert packets(node).get(FILTERED, 0) - before == (not wanted)
        packet = packet_from(pod.ipv4, health.ipv4, b"from a pod")
        assert arrives(frame(pod.node_mac, pod.mac, VLAN_5, packet), beside, inside, b"from a pod", 2.0)


def test_a_reload_sets_the_filter_by_the_devices(agent: Agent) -> None:
    """A frame of a VLAN passes while the VLAN's device is a native device, and no frame of another does.

    The device need not be there: what the programs let pass they do not count as dropped.
    """
    node, pod, uplink = agent.node, agent.node.pod("pod-1"), agent.node.facts.uplink
    assert uplink.peer_mac is not None
    vlan = Vlan(f"{UPLINK}.5", uplink.ifindex, 5)
    agent.configure(node=replace(agent.config.node, vlans=(vlan, replace(vlan, name=f"{UPLINK}.6", id=6))))
    with (
        FrameSocket(node.netns(OUTSIDE), UPLINK) as outside,
        FrameSocket(node.netns(pod.name), pod.inner_ifname) as inside,
    ):
        for number, vlans in enumerate((("eth0.5",), (), ("eth0.6",), ("eth0.6", "eth0.5"))):
            agent.configure(devices=(UPLINK, *vlans))
            agent.reload(HOST)
            before = packets(node).get(FILTERED, 0)
            # What comes last is not of a VLAN: when it arrives, those before it have been counted.
            for tag in (VLAN_5, b""):
                payload = f"reload {number} ".encode() + tag
                packet = packet_from(node.spec.outside4.ip, pod.ipv4, payload)
                outside.send(frame(uplink.mac, uplink.peer_mac, tag, packet))
            assert inside.receive(methodcaller("endswith", payload)) is not None
            assert packets(node).get(FILTERED, 0) - before == ("eth0.5" not in vlans), vlans

"""reload/xdp.py on a real node: what holds the program, in which mode, and what others have there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import permutations
from pathlib import Path

import pytest

from datapath.base.bpftypes import ProgType
from datapath.errors import LinkReplaced
from datapath.kernel import bpf, links, xdp
from datapath.kernel.hooks import HookEmptied
from datapath.kernel.inventory import program_name
from datapath.kernel.links import AttachType
from datapath.kernel.netns import enter
from datapath.kernel.xdp import Attached, Mode
from datapath.reload.plans import XDP_SUBJECT
from datapath.reload.xdp import CIL_XDP_ENTRY, XdpTaken, XdpUnsupported
from lab.scenario.gate import Gate
from lab.system.tools import run
from tests.datapath.support import XDP_PASS, Injected, Rig, inject, program, rig, until
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def node(templates: Path) -> Iterator[Rig]:
    with rig(templates, pods=0, devices=("eth0",), xdp="native") as made:
        yield made


@pytest.fixture
def eth0(node: Rig) -> Iterator[Rig]:
    """The node without any XDP program, as it is afterwards."""
    yield node
    node.configure(xdp=None, devices=("eth0",))
    node.reload(XDP_SUBJECT)
    assert xdp.all_attached(node.netlink) == {}
    assert not list((node.config.bpffs / "cilium").rglob("*xdp*"))
    node.configure(xdp="native")


def ifindex(node: Rig) -> int:
    return node.netlink.ifindex("eth0")


def attached(node: Rig) -> tuple[Mode, str]:
    """Return mode and name of the one program of eth0."""
    (found,) = xdp.attached(node.netlink, ifindex(node))
    return found.mode, program_name(found.program_id)


def holder(node: Rig) -> int | None:
    """Return the id of the link that holds the program of eth0."""
    (found,) = xdp.attached(node.netlink, ifindex(node))
    fd = xdp.link_of(ifindex(node), found.program_id)
    if fd is None:
        return None
    try:
        return links.info(fd).id
    finally:
        os.close(fd)


def pin(node: Rig, ifname: str = "eth0") -> Path:
    return node.config.device_links(ifname) / CIL_XDP_ENTRY


def passing(name: str) -> AbstractContextManager[int]:
    """Hold a program that lets every packet pass."""
    return program(XDP_PASS, ProgType.XDP, name)


def test_a_link_is_pinned_and_updated_in_place(eth0: Rig) -> None:
    eth0.reload(XDP_SUBJECT)
    first = holder(eth0)
    with links.pinned(pin(eth0)) as fd:
        assert fd is not None
        assert links.info(fd).id == first
    (before,) = xdp.attached(eth0.netlink, ifindex(eth0))
    eth0.reload(XDP_SUBJECT)
    assert holder(eth0) == first
    assert xdp.attached(eth0.netlink, ifindex(eth0)) != (before,)


def test_what_somebody_removes_during_a_reload_is_noticed_and_put_back(eth0: Rig) -> None:
    """No success is reported over an empty hook."""
    eth0.reload(XDP_SUBJECT)
    before = xdp.attached(eth0.netlink, ifindex(eth0))

    def detach(*_: object) -> None:
        with links.pinned(pin(eth0)) as fd:
            assert fd is not None
            links.detach(fd)

    with pytest.raises(HookEmptied):
        eth0.reload(XDP_SUBJECT, observer=Gate(detach, after="attach xdp"))
    assert xdp.attached(eth0.netlink, ifindex(eth0)) == before
    assert holder(eth0) is not None


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_program_of_ours_without_a_link_is_replaced_in_place(eth0: Rig, mode: str) -> None:
    """A former agent has attached it by netlink; a failed reload puts it back."""
    eth0.configure(xdp=mode)
    flag = Mode[mode.upper()]
    with passing("cil_xdp_entry") as fd:
        xdp.attach(eth0.netlink, ifindex(eth0), flag, fd)
        former = (Attached(flag, bpf.prog_id(fd)),)
        with pytest.raises(Injected):
            eth0.reload(XDP_SUBJECT, observer=Gate(inject, after="attach xdp"))
        assert xdp.attached(eth0.netlink, ifindex(eth0)) == former
    eth0.reload(XDP_SUBJECT)
    assert (attached(eth0), holder(eth0)) == ((flag, CIL_XDP_ENTRY), None)
    assert not pin(eth0).exists()


def test_a_program_of_ours_without_a_link_changes_its_mode(eth0: Rig) -> None:
    with passing("cil_xdp_old") as fd:
        xdp.attach(eth0.netlink, ifindex(eth0), Mode.GENERIC, fd)
        former = (Attached(Mode.GENERIC, bpf.prog_id(fd)),)
        with pytest.raises(Injected):
            eth0.reload(XDP_SUBJECT, observer=Gate(inject, after="attach xdp"))
        assert xdp.attached(eth0.netlink, ifindex(eth0)) == former
        assert not pin(eth0).parent.exists()
        outcome = eth0.reload(XDP_SUBJECT)
    assert any("had no XDP program for a moment" in warning for warning in outcome.warnings)
    assert (attached(eth0)[0], holder(eth0) is not None) == (Mode.NATIVE, True)


@pytest.mark.parametrize("name", ["acme_xdp", "cil_xdp_entry"])
def test_what_the_link_of_somebody_else_holds_is_left_alone(eth0: Rig, name: str) -> None:
    """Whatever the program is called; a device that is none any more keeps it too."""
    with passing(name) as fd, enter(eth0.config.netns):
        link = links.create(fd, ifindex(eth0), AttachType.XDP, flags=Mode.NATIVE)
    try:
        for changes in ({}, {"xdp": "generic"}):
            eth0.configure(**changes)
            before = eth0.state()
            with pytest.raises(XdpTaken, match=f"native XDP has the program {name} .*held by a link"):
                eth0.reload(XDP_SUBJECT)
            assert before.differences(eth0.state()) == []
        eth0.configure(devices=())
        eth0.reload(XDP_SUBJECT)
        assert attached(eth0) == (Mode.NATIVE, name)
    finally:
        links.detach(link)
        os.close(link)


def test_the_link_of_a_device_that_is_made_anew_is_replaced(eth0: Rig) -> None:
    """Its pin is there, and holds nothing; the pins of a device that is gone go as well."""
    ns = eth0.config.netns
    eth0.configure(devices=("d0.100",))
    run(nsenter(ns, "ip", "link", "add", "d0.100", "type", "veth", "peer", "name", "d0"))
    eth0.reload(XDP_SUBJECT)
    assert pin(eth0, "d0.100").parts[-3:] == ("d0-100", "links", CIL_XDP_ENTRY)

    def make_anew(*_: object) -> None:
        run(nsenter(ns, "ip", "link", "del", "d0.100"))
        run(nsenter(ns, "ip", "link", "add", "d0.100", "type", "veth", "peer", "name", "d0"))

    with pytest.raises(LinkReplaced):
        eth0.reload(XDP_SUBJECT, observer=Gate(make_anew, before="attach xdp"))
    eth0.reload(XDP_SUBJECT)
    assert set(xdp.all_attached(eth0.netlink)) == {"d0.100"}
    run(nsenter(ns, "ip", "link", "del", "d0.100"))
    with pytest.raises(Injected):
        eth0.reload(XDP_SUBJECT, observer=Gate(inject, after="detach xdp", target="d0-100"))
    assert pin(eth0, "d0.100").exists()
    assert eth0.reload(XDP_SUBJECT).warnings == ("device d0.100 does not exist: left out",)
    assert not pin(eth0, "d0.100").parent.exists()


@pytest.mark.parametrize("was_a_device", [False, True])
def test_an_interface_whose_name_differs_in_a_dot_takes_no_device_its_pin(eth0: Rig, was_a_device: bool) -> None:
    ns = eth0.config.netns
    names = ("d0.100", "d0-100")
    for number, name in enumerate(names):
        run(nsenter(ns, "ip", "link", "add", name, "type", "veth", "peer", "name", f"peer{number}"))
    try:
        eth0.configure(devices=("d0-100",) if was_a_device else ())
        eth0.reload(XDP_SUBJECT)
        eth0.configure(devices=("d0.100",))
        for _ in range(2):
            eth0.reload(XDP_SUBJECT)
            assert set(xdp.all_attached(eth0.netlink)) == {"d0.100"}
            assert pin(eth0, "d0.100").exists()
    finally:
        for name in names:
            run(nsenter(ns, "ip", "link", "del", name))


def test_a_device_that_is_renamed_keeps_its_link(eth0: Rig) -> None:
    """Under its new name it is a device, or is none: then the link goes, although its pin has the old name."""
    ns = eth0.config.netns
    run(nsenter(ns, "ip", "link", "add", "old0", "type", "veth", "peer", "name", "d0"))
    try:
        eth0.configure(devices=("old0",))
        eth0.reload(XDP_SUBJECT)
        with links.pinned(pin(eth0, "old0")) as fd:
            assert fd is not None
            link = links.info(fd).id
        run(nsenter(ns, "ip", "link", "set", "old0", "name", "new0"))
        eth0.configure(devices=("new0",))
        before = eth0.state()
        for gate in (Gate(inject, after="attach xdp"), Gate(inject, after="detach xdp", target="old0")):
            with pytest.raises(Injected):
                eth0.reload(XDP_SUBJECT, observer=gate)
            assert before.differences(eth0.state()) == []
        eth0.reload(XDP_SUBJECT)
        with links.pinned(pin(eth0, "new0")) as fd:
            assert fd is not None
            assert links.info(fd).id == link
        assert not pin(eth0, "old0").parent.exists()
        run(nsenter(ns, "ip", "link", "set", "new0", "name", "other0"))
        eth0.reload(XDP_SUBJECT)
        assert xdp.all_attached(eth0.netlink) == {}
        assert not list((eth0.config.bpffs / "cilium").rglob("*xdp*"))
    finally:
        run(nsenter(ns, "ip", "link", "del", "d0"))


@pytest.mark.parametrize("xdp_mode", ["native", None], ids=["attach", "detach"])
def test_what_somebody_else_removes_while_it_is_looked_at(
    eth0: Rig, monkeypatch: pytest.MonkeyPatch, xdp_mode: str | None
) -> None:
    """The program is gone when its name is asked for: it is in nobody's way."""
    eth0.configure(xdp=xdp_mode)
    with passing("acme_xdp") as fd:
        xdp.attach(eth0.netlink, ifindex(eth0), Mode.NATIVE, fd)
    (foreign,) = xdp.attached(eth0.netlink, ifindex(eth0))

    def late(program_id: int) -> str:
        if program_id == foreign.program_id and foreign in xdp.attached(eth0.netlink, ifindex(eth0)):
            run(nsenter(eth0.config.netns, "ip", "link", "set", "eth0", "xdp", "off"))
            until(lambda: not is_loaded(program_id), "the program freed")
        return program_name(program_id)

    with monkeypatch.context() as patch:
        patch.setattr("datapath.reload.xdp.program_name", late)
        eth0.reload(XDP_SUBJECT)
    assert len(xdp.attached(eth0.netlink, ifindex(eth0))) == (xdp_mode is not None)


def is_loaded(program_id: int) -> bool:
    return bpf.prog_next_id(program_id - 1) == program_id


@contextmanager
def veths(node: Rig, *names: str) -> Iterator[None]:
    """Make devices with a peer each, for as long as their namespace lives under whatever names they get."""
    for number, name in enumerate(names):
        run(nsenter(node.config.netns, "ip", "link", "add", name, "type", "veth", "peer", "name", f"peer{number}"))
    try:
        yield
    finally:
        for number in range(len(names)):
            run(nsenter(node.config.netns, "ip", "link", "del", f"peer{number}"))


def rename(node: Rig, old: str, new: str) -> None:
    run(nsenter(node.config.netns, "ip", "link", "set", old, "name", new))


def link_ids(node: Rig) -> dict[str, int]:
    """Return the ids of the pinned links by the names of the devices that they are pinned for."""
    found = {}
    for path in node.config.devices_links.glob(f"*/links/{CIL_XDP_ENTRY}"):
        with links.pinned(path) as fd:
            assert fd is not None
            found[path.parts[-3]] = links.info(fd).id
    return found


@pytest.mark.parametrize("devices", [("a0", "b0"), ("b0", "a0")], ids="-".join)
def test_a_device_that_takes_the_name_of_a_renamed_one(eth0: Rig, devices: tuple[str, ...]) -> None:
    """The renamed one keeps its link, whichever of them comes first."""
    with veths(eth0, "a0", "new0"):
        eth0.configure(devices=("a0",))
        eth0.reload(XDP_SUBJECT)
        first = link_ids(eth0)["a0"]
        rename(eth0, "a0", "b0")
        rename(eth0, "new0", "a0")
        eth0.configure(devices=devices)
        before = eth0.state()
        for target in devices:
            with pytest.raises(Injected):
                eth0.reload(XDP_SUBJECT, observer=Gate(inject, after="attach xdp", target=target))
            assert before.differences(eth0.state()) == []
            assert link_ids(eth0) == {"a0": first}
        for _ in range(2):
            assert eth0.reload(XDP_SUBJECT).warnings == ()
            assert set(xdp.all_attached(eth0.netlink)) == {"a0", "b0"}
            assert link_ids(eth0)["b0"] == first
    eth0.configure(devices=())
    eth0.reload(XDP_SUBJECT)


@pytest.mark.parametrize("devices", list(permutations(("a0", "b0", "c0"))), ids="-".join)
def test_devices_that_move_up_by_a_name_each(eth0: Rig, devices: tuple[str, ...]) -> None:
    with veths(eth0, "a0", "b0", "new0"):
        eth0.configure(devices=("a0", "b0"))
        eth0.reload(XDP_SUBJECT)
        were = link_ids(eth0)
        for old, new in (("b0", "c0"), ("a0", "b0"), ("new0", "a0")):
            rename(eth0, old, new)
        eth0.configure(devices=devices)
        before = eth0.state()
        with pytest.raises(Injected):
            eth0.reload(XDP_SUBJECT, observer=Gate(inject, after="attach xdp", target=devices[-1]))
        assert before.differences(eth0.state()) == []
        assert link_ids(eth0) == were
        eth0.reload(XDP_SUBJECT)
        now = link_ids(eth0)
        assert (now["b0"], now["c0"], len(now)) == (were["a0"], were["b0"], 3)
    eth0.configure(devices=())
    eth0.reload(XDP_SUBJECT)


@pytest.mark.parametrize("count", [2, 3])
def test_devices_that_change_names_keep_their_links(eth0: Rig, count: int) -> None:
    """Each gets the name of the next one. A link is pinned at any moment: it lives by that if the reload is killed."""
    names = ("a0", "b0", "c0")[:count]
    with veths(eth0, *names):
        eth0.configure(devices=names)
        eth0.reload(XDP_SUBJECT)
        were = link_ids(eth0)
        later = dict(zip(names, (*names[1:], names[0]), strict=True))
        for name in names:
            rename(eth0, name, f"old-{name}")
        for name in names:
            rename(eth0, f"old-{name}", later[name])
        before = eth0.state()
        for target in names:
            with pytest.raises(Injected):
                eth0.reload(XDP_SUBJECT, observer=Gate(inject, after="attach xdp", target=target))
            assert before.differences(eth0.state()) == []
            assert link_ids(eth0) == were
        assert eth0.reload(XDP_SUBJECT).warnings == ()
        assert link_ids(eth0) == {later[name]: were[name] for name in names}
    eth0.configure(devices=())
    eth0.reload(XDP_SUBJECT)


def test_best_effort_is_none_where_a_device_takes_no_native_program(eth0: Rig) -> None:
    """A bridge takes none. Best effort is none there; a reload that demands it changes nothing."""
    run(nsenter(eth0.config.netns, "ip", "link", "add", "br0", "type", "bridge"))
    eth0.configure(devices=("br0",))
    try:
        before = eth0.state()
        with pytest.raises(XdpUnsupported, match="its driver cannot: choose generic or best-effort"):
            eth0.reload(XDP_SUBJECT)
        assert before.differences(eth0.state()) == []
        eth0.configure(xdp="generic")
        eth0.reload(XDP_SUBJECT)
        eth0.configure(xdp="best-effort")
        for _ in range(2):
            warnings = eth0.reload(XDP_SUBJECT).warnings
            assert warnings == ("device br0 takes no native XDP program, its driver cannot: left out",)
            assert xdp.all_attached(eth0.netlink) == {}
            # The calls map and the object of a program that is not attached are of no use.
            assert list(eth0.config.globals.glob("cilium_calls_xdp_*")) == []
            assert list((eth0.config.state / XDP_SUBJECT).glob("*.o*")) == []
    finally:
        run(nsenter(eth0.config.netns, "ip", "link", "del", "br0"))


def test_the_commit_of_the_host_leaves_links_of_xdp_alone(eth0: Rig) -> None:
    """Of a renamed device, and of one whose pin came after the plan: XDP's own reload says what becomes of them."""
    ns = eth0.config.netns
    run(nsenter(ns, "ip", "link", "add", "old0", "type", "veth", "peer", "name", "d0"))
    try:
        eth0.configure(devices=("old0",))
        eth0.reload(XDP_SUBJECT)
        before = xdp.all_attached(eth0.netlink)
        run(nsenter(ns, "ip", "link", "set", "old0", "name", "new0"))
        eth0.configure(devices=("new0",))
        assert eth0.reload("host").warnings == ()
        assert xdp.all_attached(eth0.netlink) == {"new0": before["old0"]}
        with links.pinned(pin(eth0, "old0")) as fd:
            assert fd is not None
            link = links.info(fd).id
        eth0.reload(XDP_SUBJECT)
        with links.pinned(pin(eth0, "new0")) as fd:
            assert fd is not None
            assert links.info(fd).id == link
        assert not pin(eth0, "old0").parent.exists()
    finally:
        run(nsenter(ns, "ip", "link", "del", "d0"))


def test_a_device_that_comes_back_between_plan_and_commit_of_the_host_keeps_its_link(eth0: Rig) -> None:
    """XDP's reload runs beside that of the host."""
    ns = eth0.config.netns
    eth0.configure(devices=("d0",))

    def come_back(*_: object) -> None:
        run(nsenter(ns, "ip", "link", "add", "d0", "type", "veth", "peer", "name", "peer0"))
        eth0.reload(XDP_SUBJECT)

    run(nsenter(ns, "ip", "link", "add", "d0", "type", "veth", "peer", "name", "peer0"))
    eth0.reload(XDP_SUBJECT)
    run(nsenter(ns, "ip", "link", "del", "d0"))
    try:
        assert eth0.reload("host", observer=Gate(come_back, before="commit")).warnings == (
            "device d0 does not exist: left out",
        )
        assert set(xdp.all_attached(eth0.netlink)) == {"d0"}
        assert pin(eth0, "d0").exists()
    finally:
        run(nsenter(ns, "ip", "link", "del", "d0"))

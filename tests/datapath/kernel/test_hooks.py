from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from datapath.base.names import check_ifname
from datapath.errors import InvalidName, NetlinkError
from datapath.kernel import hooks
from datapath.kernel.hooks import Direction, Filter, HookBlocked
from datapath.kernel.netlink import NetlinkSocket
from tests.datapath import support
from tests.lab.wires import ip, namespace

IFNAME = "lxc0123456789ab"


def test_names_are_those_of_the_reference() -> None:
    assert hooks.filter_name("cil_from_container", IFNAME) == "cil_from_container-lxc0123456789ab"
    assert [str(direction) for direction in Direction] == ["ingress", "egress"]


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", "x" * 16, "a b", "a:b", "ä" * 8])
def test_refused_interface_name(name: str) -> None:
    with pytest.raises(InvalidName, match="invalid interface name"):
        check_ifname(name)


@pytest.mark.parametrize("name", ["lxc_health", "eth0.100", "x" * 15])
def test_good_interface_name(name: str) -> None:
    assert check_ifname(name) == name


def test_only_bpf_filters_of_the_right_name_are_ours() -> None:
    ours = Filter(1, Direction.INGRESS, 1, hooks.ETH_P_ALL, 1, "bpf", "cil_from_container-x", 7)
    assert ours.is_ours
    assert not replace(ours, name="acme_cil_from_container").is_ours
    assert not replace(ours, kind="u32").is_ours


@dataclass
class Wire:
    """An interface in a namespace of its own, and two programs."""

    netns: Path
    netlink: NetlinkSocket
    ifindex: int
    first: int
    second: int

    def show(self, direction: str) -> list[dict[str, object]]:
        """Return what `tc` says of the filters; it has one more entry per priority, without options."""
        found = support.tc(self.netns, "filter", "show", "dev", IFNAME, direction)
        return [item for item in found if "options" in item]

    def attach(self, fd: int, name: str, *, priority: int = 1, handle: int = 1) -> None:
        hooks.attach(
            self.netlink, self.ifindex, Direction.INGRESS, program_fd=fd, name=name, priority=priority, handle=handle
        )

    def filters(self, direction: Direction = Direction.INGRESS) -> tuple[Filter, ...]:
        return hooks.filters(self.netlink, self.ifindex, direction)


@pytest.fixture
def bare() -> Iterator[Wire]:
    """Yield an interface without a qdisc."""
    with namespace() as path, support.program() as first, support.program() as second:
        ip(path, "link", "add", IFNAME, "type", "veth", "peer", "name", "peer")
        with NetlinkSocket(Path(path)) as netlink:
            yield Wire(Path(path), netlink, netlink.ifindex(IFNAME), first, second)


@pytest.fixture
def wire(bare: Wire) -> Wire:
    assert hooks.ensure_clsact(bare.netlink, bare.ifindex)
    return bare


@pytest.mark.privileged
@pytest.mark.parametrize(("direction", "priority", "shown"), [("ingress", 1, 1), ("egress", 50, 50), ("ingress", 0, 1)])
def test_attached_as_tc_shows_it(wire: Wire, direction: str, priority: int, shown: int) -> None:
    """Name, priority, handle, protocol and direct action, letter for letter."""
    where = Direction[direction.upper()]
    name = hooks.filter_name("cil_from_container", IFNAME)
    hooks.attach(wire.netlink, wire.ifindex, where, program_fd=wire.first, name=name, priority=priority)
    (found,) = wire.show(direction)
    assert {key: found[key] for key in ("protocol", "pref", "kind", "chain")} == {
        "protocol": "all",
        "pref": shown,
        "kind": "bpf",
        "chain": 0,
    }
    options = found["options"]
    assert isinstance(options, dict)
    assert options["handle"] == "0x1"
    assert options["bpf_name"] == name
    assert options["direct-action"] is True
    ident = support.program_id(wire.first)
    assert options["prog"]["id"] == ident
    assert wire.filters(where) == (Filter(wire.ifindex, where, shown, hooks.ETH_P_ALL, 1, "bpf", name, ident),)
    other = Direction.EGRESS if where is Direction.INGRESS else Direction.INGRESS
    assert wire.filters(other) == ()


@pytest.mark.privileged
def test_attach_replaces_in_place(wire: Wire) -> None:
    wire.attach(wire.first, "cil_from_container-a")
    wire.attach(wire.second, "cil_from_container-b")
    (found,) = wire.filters()
    assert (found.name, found.program_id) == ("cil_from_container-b", support.program_id(wire.second))


@pytest.mark.privileged
def test_another_priority_or_handle_is_another_filter(wire: Wire) -> None:
    """And they are listed in the order in which the kernel runs them: of one priority, the newest first."""
    wire.attach(wire.first, "cil_a", priority=2)
    wire.attach(wire.first, "cil_b", priority=1, handle=1)
    wire.attach(wire.first, "cil_c", priority=1, handle=2)
    assert [f.name for f in wire.filters()] == ["cil_c", "cil_b", "cil_a"]


@pytest.mark.privileged
def test_detach_removes_exactly_one(wire: Wire) -> None:
    for priority, handle in ((1, 1), (1, 2), (2, 1)):
        wire.attach(wire.first, f"cil_{priority}_{handle}", priority=priority, handle=handle)
    for name in ("cil_1_1", "cil_2_1"):
        (target,) = (f for f in wire.filters() if f.name == name)
        hooks.detach(wire.netlink, target)
        assert name not in {f.name for f in wire.filters()}
    assert [f.name for f in wire.filters()] == ["cil_1_2"]
    with pytest.raises(NetlinkError) as info:
        hooks.detach(wire.netlink, target)
    assert info.value.errno == errno.ENOENT


@pytest.mark.privileged
def test_foreign_filters_are_listed_as_what_they_are(wire: Wire) -> None:
    ip(str(wire.netns), "link", "set", IFNAME, "up")
    u32 = ["protocol", "ip", "prio", "7", "u32", "match", "u32", "0", "0"]
    support.tc(wire.netns, "filter", "add", "dev", IFNAME, "ingress", *u32)
    wire.attach(wire.first, "acme", priority=3)
    acme, other = wire.filters()[0], wire.filters()[-1]
    assert (acme.name, acme.priority, acme.is_ours) == ("acme", 3, False)
    assert (other.kind, other.priority, other.protocol, other.is_ours) == ("u32", 7, 0x0800, False)
    hooks.detach(wire.netlink, acme)
    assert {f.kind for f in wire.filters()} == {"u32"}


U32 = ["protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0"]


@pytest.mark.privileged
def test_filters_of_another_chain_are_not_among_ours(wire: Wire) -> None:
    """At our very priority: nothing keeps ours from being attached, and both are listed for who wants to see all."""
    support.tc(wire.netns, "filter", "add", "dev", IFNAME, "ingress", "chain", "5", *U32)
    assert wire.filters() == ()
    wire.attach(wire.first, "cil_x")
    # Of u32 the kernel lists the hash table and the entry.
    *others, ours = hooks.all_filters(wire.netlink, wire.ifindex, Direction.INGRESS)
    other = others[-1]
    assert wire.filters() == (ours,)
    assert (other.kind, other.chain, other.is_ours, hooks.collides(other, 1)) == ("u32", 5, False, False)
    assert [str(ours), str(other)] == ["cil_x", "u32 (chain 5)"]
    hooks.detach(wire.netlink, ours)
    assert hooks.all_filters(wire.netlink, wire.ifindex, Direction.INGRESS) == tuple(others)


@pytest.mark.privileged
def test_filters_of_a_shared_block_are_not_among_ours(bare: Wire) -> None:
    """They name no interface and no hook, and the block may have filters of ours by name: of another interface."""
    support.tc(bare.netns, "qdisc", "add", "dev", IFNAME, "ingress_block", "7", "egress_block", "8", "clsact")
    support.tc(bare.netns, "filter", "add", "block", "7", *U32)
    found = hooks.qdisc(bare.netlink, bare.ifindex)
    assert found == hooks.Qdisc("clsact", {Direction.INGRESS: 7, Direction.EGRESS: 8})
    assert [bare.filters(direction) for direction in Direction] == [(), ()]
    *_, other = hooks.all_filters(bare.netlink, bare.ifindex, Direction.INGRESS)
    assert (other.ifindex, other.direction, other.block) == (bare.ifindex, Direction.INGRESS, 7)
    assert str(other) == "u32 (block 7)"
    assert not replace(other, kind="bpf", name="cil_x").is_ours


@pytest.mark.privileged
def test_qdisc_of_an_interface(bare: Wire) -> None:
    assert hooks.qdisc(bare.netlink, bare.ifindex) is None
    hooks.ensure_clsact(bare.netlink, bare.ifindex)
    assert hooks.qdisc(bare.netlink, bare.ifindex) == hooks.Qdisc("clsact", dict.fromkeys(Direction, 0))
    support.tc(bare.netns, "qdisc", "delete", "dev", IFNAME, "clsact")
    assert hooks.qdisc(bare.netlink, bare.ifindex) is None
    assert hooks.ensure_clsact(bare.netlink, bare.ifindex)


@pytest.mark.privileged
@pytest.mark.parametrize("length", [63, 64, 200, 256], ids=lambda length: f"{length} bytes")
def test_names_as_long_as_the_kernel_takes(wire: Wire, length: int) -> None:
    """Ours are shorter; but a filter that comes back in a rollback has whatever name it had."""
    name = "cil_".ljust(length, "x")
    wire.attach(wire.first, name)
    (found,) = wire.filters()
    assert found.name == name


@pytest.mark.privileged
def test_a_name_that_is_no_text_comes_back_as_it_was(wire: Wire) -> None:
    name = os.fsdecode(b"cil_\xff\xfe")
    wire.attach(wire.first, name)
    (found,) = wire.filters()
    wire.attach(wire.second, found.name)
    assert [f.name for f in wire.filters()] == [name]
    assert str(found) == "cil_\ufffd\ufffd"


@pytest.mark.privileged
def test_clsact_is_made_once(bare: Wire) -> None:
    assert hooks.ensure_clsact(bare.netlink, bare.ifindex) is True
    assert hooks.ensure_clsact(bare.netlink, bare.ifindex) is False
    (found,) = (q for q in support.tc(bare.netns, "qdisc", "show", "dev", IFNAME) if q["kind"] == "clsact")
    assert found["handle"] == "ffff:"


@pytest.mark.privileged
def test_no_qdisc_is_no_filter(bare: Wire) -> None:
    assert bare.filters() == ()
    with pytest.raises(NetlinkError, match="attach cil_x ingress"):
        bare.attach(bare.first, "cil_x")


@pytest.mark.privileged
def test_legacy_ingress_qdisc_is_refused(bare: Wire) -> None:
    """The kernel would take an egress program for it, and replace the ingress program with it."""
    support.tc(bare.netns, "qdisc", "add", "dev", IFNAME, "ingress")
    with pytest.raises(HookBlocked, match="has the qdisc ingress instead of clsact: remove it") as info:
        hooks.ensure_clsact(bare.netlink, bare.ifindex)
    assert (info.value.ifindex, info.value.kind) == (bare.ifindex, "ingress")


@pytest.mark.privileged
def test_interface_that_went_away(wire: Wire) -> None:
    ip(str(wire.netns), "link", "del", IFNAME)
    assert wire.filters() == ()
    with pytest.raises(NetlinkError) as info:
        wire.attach(wire.first, "cil_x")
    assert info.value.errno in (errno.ENODEV, errno.EINVAL)
    with pytest.raises(NetlinkError) as info:
        hooks.ensure_clsact(wire.netlink, wire.ifindex)
    assert info.value.errno == errno.ENODEV


@pytest.mark.privileged
def test_a_filter_keeps_its_program_loaded(wire: Wire) -> None:
    """The descriptor is for the attach alone; and nothing of the reload stays open for it."""
    fd = support.load_returning(1)
    ident = support.program_id(fd)
    wire.attach(fd, "cil_x")
    os.close(fd)
    assert wire.filters()[0].program_id == ident

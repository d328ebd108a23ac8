"""switchover.py: what packets notice. Filters, policy slots, routes and the commit, on a node."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datapath.build.objectfile import ObjectFile
from datapath.errors import InvalidName, LinkReplaced, NetlinkError, ReloadlabError
from datapath.kernel import hooks
from datapath.kernel import routes as routes_module
from datapath.kernel.hooks import Direction, HookBlocked, HookEmptied, HookShared, HookTaken
from datapath.kernel.inventory import slots
from datapath.kernel.map import open_pin
from datapath.kernel.pins import Pin
from datapath.reload import tcxlinks
from datapath.reload.step import Step
from datapath.reload.transaction import RollbackFailed
from datapath.reload.workspace import Workspace
from lab.scenario.gate import Gate
from lab.system.tools import run
from lab.watch.snapshot import take
from tests.datapath import support
from tests.datapath.support import Injected, Rig, fails_unchanged
from tests.lab.wires import ip
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=1, devices=("eth0",)) as made:
        yield made


@pytest.fixture
def lxc(rig: Rig) -> str:
    return rig.node.pod("pod-1").ifname


def put(rig: Rig, ifname: str, name: str, *, priority: int, handle: int = 1, direction: Direction = INGRESS) -> int:
    """Attach a filter by hand; returns the id of its program."""
    ifindex = rig.netlink.ifindex(ifname)
    hooks.ensure_clsact(rig.netlink, ifindex)
    with support.program() as fd:
        hooks.attach(rig.netlink, ifindex, direction, program_fd=fd, name=name, priority=priority, handle=handle)
        return support.program_id(fd)


def delete_clsact(rig: Rig, ifname: str) -> Callable[[Step, Workspace], None]:
    """Return what deletes an interface's qdisc, with all its filters, at a gate."""

    def delete(step: Step, work: Workspace) -> None:
        support.tc(rig.config.netns, "qdisc", "delete", "dev", ifname, "clsact")

    return delete


class TestAttach:
    def test_as_tc_shows_it(self, rig: Rig, lxc: str) -> None:
        outcome = rig.reload("pod-1", routes=True)
        for direction, program in (("ingress", "cil_from_container"), ("egress", "cil_to_container")):
            shown = support.tc(rig.config.netns, "filter", "show", "dev", lxc, direction)
            (found,) = (item for item in shown if "options" in item)
            assert (found["protocol"], found["pref"], found["kind"], found["chain"]) == ("all", 1, "bpf", 0)
            assert found["options"]["handle"] == "0x1"
            assert found["options"]["bpf_name"] == f"{program}-{lxc}"
            assert found["options"]["direct-action"] is True
            (attached,) = (item for item in outcome.attached if item.direction == direction)
            assert (attached.ifname, attached.program) == (lxc, program)
            assert attached.program_id == found["options"]["prog"]["id"]

    @pytest.mark.parametrize("priority", [0, 1, 50])
    def test_priority_from_the_configuration(self, rig: Rig, lxc: str, priority: int) -> None:
        rig.configure(filter_priority=priority)
        rig.reload("pod-1")
        assert [(f.priority, f.handle) for f in rig.attached(lxc, INGRESS)] == [(priority or 1, 1)]

    def test_another_priority_replaces_the_old_one(self, rig: Rig, lxc: str) -> None:
        """Upgrade with a changed option: the reference at this commit leaves two programs (cilium issue 36172)."""
        rig.reload("pod-1")
        rig.configure(filter_priority=5)
        rig.reload("pod-1")
        assert [(f.priority, f.handle) for f in rig.attached(lxc, INGRESS)] == [(5, 1)]
        rig.configure(filter_priority=1)
        rig.reload("pod-1")
        assert [(f.priority, f.handle) for f in rig.attached(lxc, INGRESS)] == [(1, 1)]

    @pytest.mark.parametrize("direction", Direction, ids=str)
    def test_taken_place(self, rig: Rig, lxc: str, direction: Direction) -> None:
        """A foreign filter where ours would go is not overwritten (cilium issue 21345)."""
        put(rig, lxc, "acme", priority=1, direction=direction)
        message = fails_unchanged(rig, HookTaken, routes=True)
        wanted = f"{lxc} {direction}: priority 1 handle 0x1 is taken by acme: choose another filter priority"
        assert message == wanted
        rig.configure(filter_priority=2)
        rig.reload("pod-1", routes=True)
        assert rig.attached(lxc, direction)[0].name == "acme"

    @pytest.mark.parametrize("protocol", ["ip", "all"])
    def test_filter_of_another_kind_at_our_priority(self, rig: Rig, lxc: str, protocol: str) -> None:
        """One priority holds filters of one kind and protocol: the message says who sits there."""
        hooks.ensure_clsact(rig.netlink, rig.netlink.ifindex(lxc))
        words = ["prio", "1", "protocol", protocol, "u32", "match", "u32", "0", "0"]
        support.tc(rig.config.netns, "filter", "add", "dev", lxc, "ingress", *words)
        message = fails_unchanged(rig, HookTaken)
        assert f"{lxc} ingress: priority 1 handle 0x8000" in message
        assert "is taken by a u32 filter: choose another filter priority" in message

    def test_foreign_filters_elsewhere_survive(self, rig: Rig, lxc: str) -> None:
        """At another priority, and at ours with another handle; through reloads, failures, and both modes."""
        places = [(2, 1, INGRESS), (1, 7, INGRESS), (3, 1, EGRESS), (1, 7, EGRESS)]
        mine = {
            put(rig, lxc, f"acme-{number}", priority=priority, handle=handle, direction=direction)
            for number, (priority, handle, direction) in enumerate(places)
        }

        def foreign() -> set[int]:
            found = (*rig.attached(lxc, INGRESS), *rig.attached(lxc, EGRESS))
            return {f.program_id for f in found if f.name.startswith("acme")}

        for routes in (False, True, False):
            rig.reload("pod-1", routes=routes)
            assert foreign() == mine
            fails_unchanged(rig, Injected, routes=not routes, gate=Gate(support.inject, before="commit"))
            assert foreign() == mine
            assert sum(f.is_ours for f in rig.attached(lxc, EGRESS)) == routes

    def test_filters_of_another_chain_survive(self, rig: Rig, lxc: str) -> None:
        """At our own priority, under a name of ours: it is no refusal, and none of ours."""
        hooks.ensure_clsact(rig.netlink, rig.netlink.ifindex(lxc))
        words = ["protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0"]
        for direction in Direction:
            support.tc(rig.config.netns, "filter", "add", "dev", lxc, str(direction), "chain", "5", *words)
        for routes in (False, True, False):
            rig.reload("pod-1", routes=routes)
            fails_unchanged(rig, Injected, routes=not routes, gate=Gate(support.inject, before="commit"))
            for direction in Direction:
                found = hooks.all_filters(rig.netlink, rig.netlink.ifindex(lxc), direction)
                assert {str(f) for f in found if not f.is_local} == {"u32 (chain 5)"}
                assert sum(f.is_ours for f in found) == (routes or direction is INGRESS)

    @pytest.mark.parametrize("direction", Direction, ids=str)
    def test_shared_block_is_refused(self, rig: Rig, lxc: str, direction: Direction) -> None:
        """The kernel takes no filter for the interface alone; with or without filters in the block."""
        words = ["protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0"]
        support.tc(rig.config.netns, "qdisc", "add", "dev", lxc, f"{direction}_block", "1", "clsact")
        ifindex = rig.netlink.ifindex(lxc)
        wanted = f"{lxc} {direction} has the shared filter block 1: give it a clsact qdisc without"
        assert wanted in fails_unchanged(rig, HookShared, routes=True)
        support.tc(rig.config.netns, "filter", "add", "block", "1", *words)
        assert wanted in fails_unchanged(rig, HookShared, routes=True)
        if direction is EGRESS:
            rig.reload("pod-1")
            assert {f.kind for f in hooks.all_filters(rig.netlink, ifindex, EGRESS)} == {"u32"}

    @pytest.mark.parametrize("length", [63, 64, 200])
    def test_a_long_name_of_ours_comes_back(self, rig: Rig, lxc: str, length: int) -> None:
        """The kernel takes names of up to 256 bytes: the rollback must not stop at one that no program of ours has."""
        put(rig, lxc, "cil_".ljust(length, "x"), priority=1)
        fails_unchanged(rig, Injected, gate=Gate(support.inject, before="commit"))
        rig.reload("pod-1")
        assert [f.name for f in rig.attached(lxc, INGRESS)] == [f"cil_from_container-{lxc}"]

    @pytest.mark.parametrize(("priority", "handle"), [(1, 2), (5, 1), (5, 3)])
    @pytest.mark.parametrize("ours_first", [True, False], ids=["ours before it", "ours after it"])
    def test_stale_filter_of_ours(self, rig: Rig, lxc: str, priority: int, handle: int, ours_first: bool) -> None:
        """Removed by the reload; put back by one that fails, at its place in the order in which the kernel runs them.

        Of one priority, the filter attached last runs first, and it alone: put back in front of the right one, a stale
        program would take over (cilium issue 36172).
        """
        name = hooks.filter_name("cil_from_container", lxc)
        if ours_first:
            rig.reload("pod-1")
            put(rig, lxc, name, priority=priority, handle=handle)
        else:
            put(rig, lxc, name, priority=priority, handle=handle)
            fd = support.load_returning(0)
            hooks.attach(rig.netlink, rig.netlink.ifindex(lxc), INGRESS, program_fd=fd, name=name, priority=1)
            os.close(fd)
        assert len(rig.attached(lxc, INGRESS)) == 2
        fails_unchanged(rig, Injected, gate=Gate(support.inject, after="attach ingress"))
        assert len(rig.attached(lxc, INGRESS)) == 2
        outcome = rig.reload("pod-1")
        (left,) = rig.attached(lxc, INGRESS)
        assert (left.priority, left.handle, left.program_id) == (1, 1, outcome.attached[0].program_id)

    def test_many_stale_filters_come_back_in_order(self, rig: Rig, lxc: str) -> None:
        for handle in (4, 2, 1, 9, 3):
            put(rig, lxc, f"cil_stale_{handle}", priority=1, handle=handle)
        put(rig, lxc, "cil_other", priority=2)
        assert [f.handle for f in rig.attached(lxc, INGRESS)] == [3, 9, 1, 2, 4, 1]
        fails_unchanged(rig, Injected, gate=Gate(support.inject, before="commit"))

    def test_hook_is_never_empty(self, rig: Rig, lxc: str) -> None:
        """Looked at between all steps, of reloads that succeed and that fail: one program of ours, always."""
        rig.reload("pod-1")
        seen: set[int] = set()

        def look(step: Step, work: Workspace) -> None:
            seen.add(len(rig.attached(lxc, INGRESS)))

        rig.reload("pod-1", observer=Gate(look, after="*"))
        assert seen == {1}

    def test_legacy_ingress_qdisc(self, rig: Rig, lxc: str) -> None:
        support.tc(rig.config.netns, "qdisc", "add", "dev", lxc, "ingress")
        assert "has the qdisc ingress instead of clsact" in fails_unchanged(rig, HookBlocked, routes=True)


class TestClsact:
    def test_stays_after_a_first_load_that_failed(self, rig: Rig, lxc: str) -> None:
        """To remove it could take filters with it that others attach at that moment."""
        assert support.qdiscs(rig.netlink) == set()
        fails_unchanged(rig, Injected, gate=Gate(support.inject, before="commit"))
        assert (rig.netlink.ifindex(lxc), "clsact") in support.qdiscs(rig.netlink)

    def test_kept_if_it_was_there(self, rig: Rig, lxc: str) -> None:
        hooks.ensure_clsact(rig.netlink, rig.netlink.ifindex(lxc))
        fails_unchanged(rig, Injected, gate=Gate(support.inject, before="commit"))
        assert (rig.netlink.ifindex(lxc), "clsact") in support.qdiscs(rig.netlink)

    @pytest.mark.parametrize("direction", Direction, ids=str)
    def test_kept_if_somebody_uses_it_by_now(self, rig: Rig, lxc: str, direction: Direction) -> None:
        def squat(step: Step, work: Workspace) -> None:
            put(rig, lxc, "acme", priority=9, direction=direction)
            support.inject(step, work)

        with pytest.raises(Injected):
            rig.reload("pod-1", observer=Gate(squat, before="commit"))
        assert [f.name for f in rig.attached(lxc, direction)] == ["acme"]
        assert (rig.netlink.ifindex(lxc), "clsact") in support.qdiscs(rig.netlink)


class TestOthers:
    """What somebody else does to a hook while a reload is under way."""

    @pytest.mark.parametrize("first", [True, False], ids=["first load", "reload"])
    def test_a_qdisc_that_goes_before_the_commit_is_no_success(self, rig: Rig, lxc: str, first: bool) -> None:
        """The hooks would be empty. The old programs come back."""
        if not first:
            rig.reload("pod-1", routes=True)
        message = fails_unchanged(rig, HookEmptied, routes=True, gate=Gate(delete_clsact(rig, lxc), before="commit"))
        assert f"{lxc} egress: cil_to_container is not attached any more" in message

    def test_a_qdisc_that_goes_between_two_attaches_is_no_success(self, rig: Rig, lxc: str) -> None:
        """What the reload has not touched by then is gone as they left it; the next reload brings all back."""
        rig.reload("pod-1", routes=True)
        old = rig.attached(lxc, EGRESS)
        with pytest.raises(HookEmptied, match=f"{lxc} egress: cil_to_container is not attached any more"):
            rig.reload("pod-1", routes=True, observer=Gate(delete_clsact(rig, lxc), before="insert policy"))
        assert rig.attached(lxc, EGRESS) == old
        rig.reload("pod-1", routes=True)
        assert [len(rig.attached(lxc, direction)) for direction in Direction] == [1, 1]

    def test_somebody_is_first_at_our_place(self, rig: Rig, lxc: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between the look at the hook and the attach: the place is not taken from them."""
        attach = hooks.attach

        def late(*args: Any, **options: Any) -> None:
            monkeypatch.setattr(hooks, "attach", attach)
            theirs.append(put(rig, lxc, "acme", priority=1))
            attach(*args, **options)

        theirs: list[int] = []
        monkeypatch.setattr(hooks, "attach", late)
        with pytest.raises(HookTaken, match="priority 1 handle 0x1 is taken by acme"):
            rig.reload("pod-1")
        assert [found.program_id for found in rig.attached(lxc, INGRESS)] == theirs

    @pytest.mark.parametrize("stage", ["switched", "detached"])
    def test_somebody_takes_the_old_place(self, rig: Rig, lxc: str, stage: str) -> None:
        """The rollback leaves them there and says so; the old program goes on where the new one was."""
        rig.reload("pod-1", routes=True)
        old = rig.attached(lxc, EGRESS)[0].program_id
        rig.configure(filter_priority=5)

        def squat(step: Step, work: Workspace) -> None:
            put(rig, lxc, "acme", priority=1, direction=EGRESS)
            support.inject(step, work)

        gate = Gate(squat, before="commit")
        with pytest.raises(RollbackFailed, match=f"{lxc} egress: priority 1 handle 0x1 is taken by acme"):
            rig.reload("pod-1", routes=stage == "switched", observer=gate)
        names = [(found.name, found.priority) for found in rig.attached(lxc, EGRESS)]
        ours = f"cil_to_container-{lxc}"
        assert names == [("acme", 1), *([(ours, 5)] if stage == "switched" else [])]
        assert stage == "detached" or rig.attached(lxc, EGRESS)[1].program_id == old
        assert [found.priority for found in rig.attached(lxc, INGRESS)] == [1]


class TestDetach:
    def test_only_ours(self, rig: Rig, lxc: str) -> None:
        rig.reload("pod-1", routes=True)
        put(rig, lxc, "acme", priority=2, direction=EGRESS)
        put(rig, lxc, "cil_to_container-old", priority=3, direction=EGRESS)
        rig.reload("pod-1", routes=False)
        assert [f.name for f in rig.attached(lxc, EGRESS)] == ["acme"]

    def test_ours_come_back(self, rig: Rig, lxc: str) -> None:
        rig.reload("pod-1", routes=True)
        rig.reload("pod-1", routes=True)
        for handle in (3, 2):
            put(rig, lxc, "cil_to_container-old", priority=1, handle=handle, direction=EGRESS)
        fails_unchanged(rig, Injected, gate=Gate(support.inject, after="detach egress"))

    def test_netdev_programs_leave_an_interface_that_is_no_device_any_more(self, rig: Rig) -> None:
        ip(str(rig.config.netns), "link", "add", "old0", "type", "bridge")
        for name in ("cil_from_netdev-old0", "cil_other-old0", "acme"):
            put(rig, "old0", name, priority=1 + len(name), direction=INGRESS)
        put(rig, "old0", "cil_to_netdev-old0", priority=1, direction=EGRESS)
        rig.reload("host")
        assert {f.name for f in rig.attached("old0", INGRESS)} == {"acme", "cil_other-old0"}
        assert rig.attached("old0", EGRESS) == ()

    def test_an_interface_that_goes_meanwhile_has_nothing_to_detach(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look-up of its index and the question what runs at its hook."""
        rig.reload("host")
        ip(str(rig.config.netns), "link", "add", "old0", "type", "bridge")
        look = tcxlinks.look

        def late(work: Workspace, ifname: str, ifindex: int, direction: Direction) -> tcxlinks.TcxHook:
            if ifname == "old0" and rig.netlink.interfaces().keys() >= {"old0"}:
                ip(str(rig.config.netns), "link", "del", "old0")
            return look(work, ifname, ifindex, direction)

        monkeypatch.setattr(tcxlinks, "look", late)
        rig.reload("host")
        assert "old0" not in rig.netlink.interfaces()

    def test_device_without_egress_programs(self, rig: Rig) -> None:
        rig.reload("host")
        assert [f.name for f in rig.attached("eth0", EGRESS)] == ["cil_to_netdev-eth0"]
        rig.configure(egress_devices=False)
        rig.reload("host")
        assert rig.attached("eth0", EGRESS) == ()
        assert [f.name for f in rig.attached("eth0", INGRESS)] == ["cil_from_netdev-eth0"]


def _fail_after(argv: list[str]) -> None:
    run(argv)
    raise Injected("injected")


class TestFormerDevices:
    """What is there of an interface that is no device any more, or was made anew under its name, is for nobody."""

    def there(self, rig: Rig) -> set[str]:
        pins = {path.name for path in rig.config.globals.glob("cilium_calls_netdev_*")}
        return pins | {path.name for path in (rig.config.state / "1").glob("bpf_netdev_*")}

    def wanted(self, rig: Rig, *names: str) -> set[str]:
        pins = {f"cilium_calls_netdev_{rig.netlink.ifindex(name):05d}" for name in ("cilium_net", *names)}
        return pins | {f"bpf_netdev_{name}.o" for name in names}

    def test_taken_off_the_list(self, rig: Rig) -> None:
        rig.reload("host")
        assert self.there(rig) == self.wanted(rig, "eth0")
        programs = len(take(rig.node).programs)
        rig.configure(devices=())
        before = rig.state()
        with pytest.raises(Injected):
            rig.reload("host", observer=Gate(support.inject, before="commit"))
        assert before.differences(rig.state()) == []
        outcome = rig.reload("host")
        assert outcome.warnings == ()
        assert self.there(rig) == self.wanted(rig)
        support.until(lambda: len(take(rig.node).programs) < programs, "the device's programs are gone")
        rig.configure(devices=("eth0",))
        rig.reload("host")
        assert self.there(rig) == self.wanted(rig, "eth0")
        assert rig.dead_calls() == []

    def test_made_anew_under_the_same_name(self, rig: Rig) -> None:
        netns = str(rig.config.netns)
        rig.configure(devices=("eth0", "dev7"))
        for _ in range(2):
            ip(netns, "link", "add", "dev7", "type", "bridge")
            rig.reload("host")
            assert self.there(rig) == self.wanted(rig, "eth0", "dev7")
            ip(netns, "link", "del", "dev7")
        assert rig.reload("host").warnings == ("device dev7 does not exist: left out",)
        assert self.there(rig) == self.wanted(rig, "eth0")
        assert rig.dead_calls() == []


class TestRoutes:
    def show(self, rig: Rig, version: int) -> list[dict[str, Any]]:
        pod = rig.node.pod("pod-1")
        address = pod.ipv4 if version == 4 else pod.ipv6
        return support.ip(rig.config.netns, f"-{version}", "route", "show", "table", "main", "exact", str(address))

    def test_come_and_go_with_the_mode(self, rig: Rig, lxc: str) -> None:
        for routes in (True, True, False, False):
            rig.reload("pod-1", routes=routes)
            for version in (4, 6):
                assert [found["dev"] for found in self.show(rig, version)] == [lxc] * routes

    @pytest.mark.parametrize("words", [[], ["metric", "77"], ["metric", "4000"]], ids=["same", "lower", "higher"])
    def test_foreign_route_comes_back(self, rig: Rig, words: list[str]) -> None:
        """Whatever its metric: ours may take its place, or lie beside it."""
        pod = rig.node.pod("pod-1")
        for address in (pod.ipv4, pod.ipv6):
            target = f"{address}/{address.max_prefixlen}"
            ip(str(rig.config.netns), f"-{address.version}", "route", "add", target, "dev", "eth0", *words)
        before = [self.show(rig, version) for version in (4, 6)]
        assert all(before)
        fails_unchanged(rig, Injected, routes=True, gate=Gate(support.inject, after="install routes"))
        assert [self.show(rig, version) for version in (4, 6)] == before

    @pytest.mark.parametrize(
        "words",
        [["proto", "kernel", "scope", "link"], ["proto", "static", "metric", "9"], ["proto", "kernel", "mtu", "1400"]],
        ids=["newer Cilium's", "with a metric", "with an MTU"],
    )
    def test_no_route_to_the_pod_stays_whoever_installed_it(self, rig: Rig, lxc: str, words: list[str]) -> None:
        """Endpoint routes off: its packets would go past the policy. A reload that fails puts back what there was."""
        pod = rig.node.pod("pod-1")
        for address in (pod.ipv4, pod.ipv6):
            kind = words if address.version == 4 else [word for word in words if word not in ("scope", "link")]
            target = f"{address}/{address.max_prefixlen}"
            ip(str(rig.config.netns), f"-{address.version}", "route", "add", target, "dev", lxc, *kind)
        before = [self.show(rig, version) for version in (4, 6)]
        assert all(before)
        fails_unchanged(rig, Injected, routes=False, gate=Gate(support.inject, after="remove routes"))
        assert [self.show(rig, version) for version in (4, 6)] == before
        rig.reload("pod-1", routes=False)
        assert [self.show(rig, version) for version in (4, 6)] == [[], []]

    def test_a_route_that_cannot_come_back_keeps_no_other_from_it(self, rig: Rig, lxc: str) -> None:
        """IPv6 was switched off on the pod's interface meanwhile: the IPv4 route is there again, the other is named."""
        rig.reload("pod-1", routes=True)
        before = self.show(rig, 4)
        setting = f"/proc/sys/net/ipv6/conf/{lxc}/disable_ipv6"
        off = nsenter(rig.config.netns, "sh", "-c", f"echo 1 >{setting}")
        with pytest.raises(RollbackFailed, match=f"restore route {rig.node.pod('pod-1').ipv6}") as info:
            rig.reload("pod-1", routes=False, observer=Gate(lambda *_: _fail_after(off), after="remove routes"))
        assert [step.name for step, _ in info.value.failures] == ["remove routes"]
        assert self.show(rig, 4) == before

    def test_foreign_route_is_not_removed(self, rig: Rig) -> None:
        """Endpoint routes off: what leads elsewhere is somebody else's."""
        pod = rig.node.pod("pod-1")
        ip(str(rig.config.netns), "route", "add", f"{pod.ipv4}/32", "dev", "eth0")
        rig.reload("pod-1", routes=False)
        assert [found["dev"] for found in self.show(rig, 4)] == ["eth0"]

    def test_second_route_refused(self, rig: Rig, lxc: str) -> None:
        """IPv6 is off on the pod's interface: the IPv4 route that is there by then goes again."""
        setting = f"/proc/sys/net/ipv6/conf/{lxc}/disable_ipv6"
        run(nsenter(rig.config.netns, "sh", "-c", f"echo 1 >{setting}"))
        message = fails_unchanged(rig, ReloadlabError, routes=True)
        assert f"install route {rig.node.pod('pod-1').ipv6}/128" in message

    def test_a_route_that_a_rule_hides_is_left_alone(self, rig: Rig, lxc: str) -> None:
        """A look-up follows the rules, to another table perhaps; the route to the pod was there before."""
        rig.reload("pod-1", routes=True)
        netns, pod = str(rig.config.netns), rig.node.pod("pod-1")
        for address in (pod.ipv4, pod.ipv6):
            family, target = f"-{address.version}", f"{address}/{address.max_prefixlen}"
            ip(netns, family, "rule", "add", "pref", "100", "to", target, "table", "77")
            ip(netns, family, "route", "add", target, "dev", "eth0", "table", "77")
        before = [self.show(rig, version) for version in (4, 6)]
        assert all(before)
        fails_unchanged(rig, Injected, routes=True, gate=Gate(support.inject, after="install routes"))
        assert [self.show(rig, version) for version in (4, 6)] == before

    def test_endpoint_with_one_address(self, rig: Rig) -> None:
        endpoint = replace(rig.endpoint("pod-1", routes=True), ipv6=None)
        rig.loader.apply(rig.loader.plan(endpoint, subject="pod-1"))
        assert len(self.show(rig, 4)) == 1
        assert self.show(rig, 6) == []


INTERRUPTIONS = [
    (hooks, "ensure_clsact", KeyboardInterrupt),
    (hooks, "attach", KeyboardInterrupt),
    (hooks, "attach", NetlinkError),
    (hooks, "detach", KeyboardInterrupt),
    (routes_module, "upsert", KeyboardInterrupt),
    (routes_module, "upsert", NetlinkError),
    (routes_module, "_delete", KeyboardInterrupt),
    (Pin, "repin", KeyboardInterrupt),
    (ObjectFile, "publish", KeyboardInterrupt),
]


class TestInterruptedAfterTheKernelsPart:
    """Ctrl-C, or the time-out of an answer, comes when the kernel has done what it was asked to: that is undone too."""

    @pytest.mark.parametrize("loaded", [False, True], ids=["first load", "reload"])
    @pytest.mark.parametrize("routes", [False, True], ids=["routes off", "routes on"])
    @pytest.mark.parametrize(
        ("module", "call", "error"), INTERRUPTIONS, ids=[f"{call} {error.__name__}" for _, call, error in INTERRUPTIONS]
    )
    def test_is_undone(
        self,
        rig: Rig,
        monkeypatch: pytest.MonkeyPatch,
        module: Any,
        call: str,
        error: type[BaseException],
        routes: bool,
        loaded: bool,
    ) -> None:
        if loaded:
            for _ in range(2):
                rig.reload("pod-1", routes=not routes)
        before = rig.state()
        genuine, calls = getattr(module, call), []

        def interrupted(*args: Any, **options: Any) -> Any:
            result = genuine(*args, **options)
            calls.append(result)
            # The first call of the reload; those of the rollback are left alone.
            if len(calls) == 1:
                raise NetlinkError(call, errno.ETIMEDOUT, "no answer") if error is NetlinkError else error
            return result

        monkeypatch.setattr(module, call, interrupted)
        plan = rig.plan("pod-1", routes=routes)
        try:
            rig.loader.apply(plan)
        except error:
            assert calls
            assert before.differences(rig.state()) == []
        else:
            assert not calls, "nothing was interrupted"


class TestPolicy:
    def slot(self, rig: Rig, number: int) -> int | None:
        with open_pin(rig.pin("cilium_call_policy")) as pinned:
            value = pinned.lookup(struct.pack("=I", number))
        return None if value is None else int(struct.unpack("=I", value)[0])

    def test_slot_of_the_endpoint_only(self, rig: Rig) -> None:
        rig.reload("pod-1")
        rig.reload("host")
        number = rig.node.pod("pod-1").endpoint_id
        assert self.slot(rig, number) is not None
        assert self.slot(rig, 0xFFFF - 1) is None
        with open_pin(rig.pin("cilium_call_policy")) as pinned:
            assert {struct.unpack("=I", key)[0] for key, _ in pinned.items()} <= {number, 1}

    def test_filled_before_the_first_attach(self, rig: Rig) -> None:
        """Otherwise a caller finds the endpoint and an empty slot (cilium pull request 30248)."""
        number = rig.node.pod("pod-1").endpoint_id
        seen: list[int | None] = []
        for _ in range(2):
            rig.reload(
                "pod-1",
                observer=Gate(lambda _, __: seen.append(self.slot(rig, number)), before="attach ingress"),
            )
            seen.append(self.slot(rig, number))
        assert None not in seen
        assert seen[0] == seen[1] != seen[2] == seen[3]

    def test_old_program_comes_back(self, rig: Rig) -> None:
        number = rig.node.pod("pod-1").endpoint_id
        rig.reload("pod-1")
        rig.reload("pod-1")
        before = self.slot(rig, number)
        fails_unchanged(rig, Injected, gate=Gate(support.inject, before="commit"))
        assert self.slot(rig, number) == before


class TestCommit:
    def test_objects_are_published_last(self, rig: Rig) -> None:
        path = rig.config.state / str(rig.node.pod("pod-1").endpoint_id) / "bpf_lxc.o"
        there: dict[str, tuple[bool, bool]] = {}

        def look(step: Step, work: Workspace) -> None:
            there[step.name] = (path.exists(), path.with_name("bpf_lxc.o.new").exists())

        rig.reload("pod-1", observer=Gate(look, after="*"))
        assert there["write object"] == (False, True)
        assert there["detach egress"] == (False, True)
        assert there["commit"] == (True, False)
        assert sorted(p.name for p in path.parent.iterdir()) == ["bpf_lxc.o", "connections", "ep_config.h", "lock"]

    @pytest.mark.parametrize("first", [True, False], ids=["first load", "reload"])
    def test_second_of_several_objects_cannot_be_published(self, rig: Rig, first: bool) -> None:
        """The first one is taken back; nothing was let go by then."""
        if not first:
            rig.reload("host")
            rig.reload("host")
        before = rig.state()

        def vandal(step: Step, work: Workspace) -> None:
            (rig.config.state / "1" / "bpf_netdev_eth0.o.new").unlink()

        with pytest.raises(FileNotFoundError):
            rig.reload("host", observer=Gate(vandal, before="commit"))
        assert before.differences(rig.state()) == []
        rig.reload("host")
        assert rig.dead_calls() == []
        files = sorted(path.name for path in (rig.config.state / "1").iterdir())
        assert files == ["bpf_host.o", "bpf_host_cilium_net.o", "bpf_netdev_eth0.o", "ep_config.h", "lock"]

    def test_old_calls_maps_are_emptied_and_new_ones_used(self, rig: Rig) -> None:
        """Nothing of the reload keeps an old array alive: not a descriptor, not a pin."""
        rig.reload("pod-1")
        old = support.calls_of(rig, rig.node.pod("pod-1").ifname)
        rig.reload("pod-1")
        new = support.calls_of(rig, rig.node.pod("pod-1").ifname)
        assert old != new
        support.until(lambda: not any(slots(ident) for ident in old), "the old calls map emptied or gone")
        assert rig.dead_calls() == []
        assert rig.leftovers() == []


@pytest.mark.parametrize("name", ["a/b", "../lxc"])
def test_interface_name_with_a_slash(rig: Rig, name: str) -> None:
    endpoint = replace(rig.endpoint("pod-1"), ifname=name)
    with pytest.raises(InvalidName, match="no slash"):
        rig.loader.plan(endpoint, subject="pod-1")


def test_the_host_is_reloaded_beside_an_interface_of_any_name(rig: Rig) -> None:
    """It may have netdev programs from when it was a device: they are removed."""
    ip(str(rig.config.netns), "link", "add", "bad\udcff", "type", "bridge")
    put(rig, "bad\udcff", "cil_from_netdev-bad\udcff", priority=1)
    rig.reload("host")
    assert hooks.filters(rig.netlink, rig.netlink.ifindex("bad\udcff"), INGRESS) == ()


@pytest.mark.parametrize("moment", ["attach ingress", "remove routes", "detach egress", "install routes"])
def test_a_later_interface_of_the_same_name_is_not_touched(rig: Rig, lxc: str, moment: str) -> None:
    """It belongs to another pod, whose packets would meet this one's programs."""
    netns = str(rig.config.netns)

    def recreate(*_: object) -> None:
        ip(netns, "link", "del", lxc)
        ip(netns, "link", "add", lxc, "type", "veth", "peer", "name", "later")
        ip(netns, "link", "set", lxc, "up")

    plan = rig.plan("pod-1", routes=moment == "install routes")
    with pytest.raises(LinkReplaced, match=f"interface {lxc} has the index .* another has its name"):
        rig.loader.apply(plan, observer=Gate(recreate, before=moment))
    ifindex = rig.netlink.ifindex(lxc)
    assert hooks.filters(rig.netlink, ifindex, INGRESS) == hooks.filters(rig.netlink, ifindex, EGRESS) == ()
    assert not run(nsenter(netns, "ip", "route", "show", "dev", lxc))


def test_a_damaged_note_of_connections_is_a_warning_once(rig: Rig) -> None:
    rig.reload("pod-1")
    note = rig.config.state / str(rig.node.pod("pod-1").endpoint_id) / "connections"
    note.write_text("{")
    (warning,) = rig.reload("pod-1").warnings
    assert warning.startswith(f"{note} is damaged: ")
    assert rig.reload("pod-1").warnings == ()

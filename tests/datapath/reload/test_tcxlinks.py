"""tcxlinks.py: programs attached by tcx links, on a node: pins, updates in place, the way from tc and back, undo."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.endpoint import Attachment
from datapath.kernel import bpf, linkpins, links, tcx
from datapath.kernel.hooks import Direction, HookEmptied
from datapath.kernel.links import NotALink
from datapath.kernel.netns import enter
from datapath.kernel.tcx import TcxProgram
from datapath.reload.restore import sweep
from datapath.reload.step import Step
from datapath.reload.tcxlinks import WithoutLink
from datapath.reload.transaction import RollbackFailed
from datapath.reload.workspace import Workspace
from lab.scenario.gate import Gate
from lab.system.tools import run
from tests.datapath import support
from tests.datapath.support import NEEDS_TCX, TCX_NEXT, Injected, Rig, fails_unchanged
from tests.lab.wires import ip

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
BPF_F_BEFORE = 8
TC, TCX = Attachment.TC, Attachment.TCX

pytestmark = [
    pytest.mark.privileged,
    NEEDS_TCX,
]


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=1, devices=("eth0",), changes={"attach": TCX}) as made:
        yield made


@pytest.fixture
def lxc(rig: Rig) -> str:
    return rig.node.pod("pod-1").ifname


@pytest.fixture
def pins(rig: Rig) -> Path:
    return rig.config.endpoint_links(rig.node.pod("pod-1").endpoint_id)


def at(rig: Rig, ifname: str, direction: Direction = INGRESS) -> tuple[TcxProgram, ...]:
    return tcx.programs(rig.config.netns, rig.netlink.ifindex(ifname), direction)


def pinned_id(path: Path) -> int:
    with links.pinned(path) as fd:
        assert fd is not None, f"{path} is not pinned"
        return links.info(fd).id


def attach_by_hand(stack: ExitStack, rig: Rig, ifname: str, *, name: str, first: bool = False) -> int:
    """Attach a program to the ingress hook by a link that lives until the test ends; return the link's descriptor."""
    program = stack.enter_context(support.program(TCX_NEXT, name=name))
    ifindex = rig.netlink.ifindex(ifname)
    with enter(rig.config.netns):
        link = links.create(program, ifindex, links.AttachType.TCX_INGRESS, flags=BPF_F_BEFORE if first else 0)
    stack.callback(os.close, link)
    return link


def injected(rig: Rig, *, routes: bool = False) -> None:
    fails_unchanged(rig, Injected, routes=routes, gate=Gate(support.inject, before="commit"))


def add_devices(rig: Rig, *names: str) -> None:
    """Make them the node's devices, with programs."""
    for name in names:
        ip(str(rig.config.netns), "link", "add", name, "type", "bridge")
    rig.configure(devices=names)
    rig.reload("host")


def rename(rig: Rig, names: dict[str, str]) -> None:
    for old, new in names.items():
        ip(str(rig.config.netns), "link", "set", old, "name", new)


def links_of_devices(rig: Rig, *names: str) -> dict[str, int]:
    """Return the ids of the links that are pinned under the names of devices."""
    return {name: pinned_id(rig.config.device_links(name) / "cil_from_netdev") for name in names}


def all_pinned(rig: Rig, wanted: set[int]) -> Callable[[Step, Workspace], None]:
    def look(step: Step, work: Workspace) -> None:
        pinned = {ident for path in linkpins.directories(rig.config.devices_links) for ident in linkpins.ids(path)}
        assert wanted <= pinned, f"after {step.name} of {step.target}, links without a pin: {wanted - pinned}"

    return look


def test_a_link_is_pinned_and_takes_the_next_program_in_place(rig: Rig, lxc: str, pins: Path) -> None:
    first = rig.reload("pod-1", routes=True)
    made = {program: pinned_id(pins / program) for program in ("cil_from_container", "cil_to_container")}
    second = rig.reload("pod-1", routes=True)
    assert {program: pinned_id(pins / program) for program in made} == made
    for outcome, direction in ((second, INGRESS), (second, EGRESS)):
        (found,) = at(rig, lxc, direction)
        (attached,) = (each for each in outcome.attached if each.direction == str(direction))
        assert (found.entry.program_id, attached.attachment) == (attached.program_id, TCX)
        assert found.entry.link_id == made[attached.program]
        assert rig.attached(lxc, direction) == ()
    assert {each.program_id for each in first.attached}.isdisjoint(each.program_id for each in second.attached)


@pytest.mark.parametrize("routes", [False, True], ids=["off", "on"])
def test_a_hook_never_runs_two_programs_from_tc_to_tcx_and_back(rig: Rig, lxc: str, pins: Path, routes: bool) -> None:
    """After each step a hook has a program; where it has a link and a filter, both run the same."""
    seen: set[int] = set()

    def look(step: Step, work: Workspace) -> None:
        filters = [found.program_id for found in rig.attached(lxc, INGRESS)]
        seen.add(len({*filters, *(found.entry.program_id for found in at(rig, lxc))}))

    rig.configure(attach=TC)
    rig.reload("pod-1", routes=routes)
    for attach, counts in ((TCX, (1, 0)), (TC, (0, 1))):
        rig.configure(attach=attach)
        rig.reload("pod-1", routes=routes, observer=Gate(look, after="*"))
        assert seen == {1}
        assert (len(at(rig, lxc)), len(rig.attached(lxc, INGRESS))) == counts
        assert (len(at(rig, lxc, EGRESS)), len(rig.attached(lxc, EGRESS))) == (counts if routes else (0, 0))
        assert pins.exists() == (attach is TCX)


@pytest.mark.parametrize("there", [None, TC, TCX], ids=["first load", "tc", "tcx"])
@pytest.mark.parametrize("wanted", [TC, TCX], ids=["to tc", "to tcx"])
def test_a_failed_reload_leaves_everything_as_it_was(rig: Rig, there: Attachment | None, wanted: Attachment) -> None:
    if there is not None:
        rig.configure(attach=there)
        rig.reload("pod-1", routes=True)
    rig.configure(attach=wanted)
    for routes in (True, False):
        injected(rig, routes=routes)


def test_the_order_of_a_hook_is_that_before_the_failure(rig: Rig, lxc: str) -> None:
    """A link that comes back to a hook has its place there again: before the programs of others that it was before."""
    with ExitStack() as stack:
        rig.reload("pod-1")
        attach_by_hand(stack, rig, lxc, name="acme_first", first=True)
        attach_by_hand(stack, rig, lxc, name="acme_last")
        before = [found.name for found in at(rig, lxc)]
        assert before == ["acme_first", "cil_from_contai", "acme_last"]
        for attach in (TC, TCX):
            rig.configure(attach=attach)
            injected(rig)
            assert [found.name for found in at(rig, lxc)] == before


def test_a_program_that_goes_meets_no_packet_from_its_step_on(rig: Rig, lxc: str, pins: Path) -> None:
    """The link passes packets on until the commit detaches it: so it can still be taken back."""
    rig.reload("pod-1", routes=True)
    seen: dict[str, list[str]] = {}

    def look(step: Step, work: Workspace) -> None:
        seen[step.name] = [found.name for found in at(rig, lxc, EGRESS)]

    injected(rig, routes=False)
    rig.reload("pod-1", routes=False, observer=Gate(look, after="*"))
    assert (seen["remove routes"], seen["detach egress"]) == (["cil_to_containe"], ["cil_nothing"])
    assert seen["commit"] == []
    assert os.listdir(pins) == ["cil_from_container"]


def test_a_pinned_link_of_an_interface_that_is_gone_is_made_anew(rig: Rig, lxc: str, pins: Path) -> None:
    path = pins / "cil_from_container"
    with ExitStack() as stack:
        ip(str(rig.config.netns), "link", "add", "old0", "type", "bridge")
        link = attach_by_hand(stack, rig, "old0", name="cil_from_container")
        pins.mkdir(parents=True)
        bpf.obj_pin(link, path)
        stale = links.info(link).id
        ip(str(rig.config.netns), "link", "delete", "old0")
        injected(rig)
        assert pinned_id(path) == stale
    rig.reload("pod-1")
    assert [found.entry.link_id for found in at(rig, lxc)] == [pinned_id(path)] != [stale]


def test_a_link_that_has_lost_its_pin_is_taken_over(rig: Rig, lxc: str, pins: Path) -> None:
    """A BPF file system is mounted anew over the old one: no second link comes (cilium issue 47847)."""
    rig.reload("pod-1")
    (before,) = at(rig, lxc)
    run(["mount", "-t", "bpf", "bpf", str(rig.config.bpffs)])
    try:
        injected(rig)
        rig.reload("pod-1")
        (found,) = at(rig, lxc)
        assert found.entry.link_id == before.entry.link_id == pinned_id(pins / "cil_from_container")
        assert found.entry.program_id != before.entry.program_id
    finally:
        run(["umount", str(rig.config.bpffs)])


def test_a_link_that_somebody_holds_survives_the_file_system_of_its_pin(rig: Rig, lxc: str, pins: Path) -> None:
    """All pins go with the file system, and a new one is mounted in its place: the link is taken over and pinned."""
    rig.reload("pod-1")
    (before,) = at(rig, lxc)
    with links.pinned(pins / "cil_from_container") as held:
        assert held is not None
        run(["umount", str(rig.config.bpffs)])
        run(["mount", "-t", "bpf", "bpf", str(rig.config.bpffs)])
        assert not pins.exists()
        rig.reload("pod-1")
        (found,) = at(rig, lxc)
        assert found.entry.link_id == before.entry.link_id == pinned_id(pins / "cil_from_container")
        assert found.entry.program_id != before.entry.program_id
    rig.reload("pod-1")
    assert [each.entry.link_id for each in at(rig, lxc)] == [before.entry.link_id]


@pytest.mark.parametrize("attach", [TC, TCX])
def test_of_several_links_of_ours_one_remains(rig: Rig, lxc: str, attach: Attachment) -> None:
    rig.reload("pod-1")
    with ExitStack() as stack:
        attach_by_hand(stack, rig, lxc, name="cil_from_container", first=True)
        rig.configure(attach=attach)
        injected(rig)
        assert len(at(rig, lxc)) == 2
        rig.reload("pod-1")
        assert (len(at(rig, lxc)), len(rig.attached(lxc, INGRESS))) == ((1, 0) if attach is TCX else (0, 1))


@pytest.mark.parametrize("attach", [TC, TCX])
def test_a_program_of_others_that_runs_before_ours_is_named(rig: Rig, lxc: str, attach: Attachment) -> None:
    rig.configure(attach=attach)
    assert rig.reload("pod-1").warnings == ()
    with ExitStack() as stack:
        attach_by_hand(stack, rig, lxc, name="acme", first=True)
        (theirs,) = (found for found in at(rig, lxc) if not found.is_ours)
        words = "runs before cil_from_container, which sees only what that passes on"
        for _ in range(2):
            assert rig.reload("pod-1").warnings == (f"{lxc} ingress: tcx program {theirs} {words}",)
        assert theirs in at(rig, lxc)


def test_what_runs_behind_ours_is_no_warning(rig: Rig, lxc: str) -> None:
    rig.reload("pod-1")
    with ExitStack() as stack:
        attach_by_hand(stack, rig, lxc, name="acme")
        assert rig.reload("pod-1").warnings == ()


def test_a_pin_that_is_no_link_is_refused(rig: Rig, pins: Path) -> None:
    pins.mkdir(parents=True)
    fd = bpf.map_create(MapType.HASH, 4, 4, 1)
    bpf.obj_pin(fd, pins / "cil_from_container")
    os.close(fd)
    assert fails_unchanged(rig, NotALink) == f"{pins}/cil_from_container is no BPF link: remove it"


BPF_PROG_ATTACH, BPF_PROG_DETACH = 8, 9


def test_a_program_of_ours_without_a_link_is_refused(rig: Rig, lxc: str) -> None:
    """BPF_PROG_ATTACH, which nothing here does."""
    with support.program(TCX_NEXT, name="cil_from_container") as fd:
        attr = struct.pack("=6IQ", rig.netlink.ifindex(lxc), fd, links.AttachType.TCX_INGRESS, 0, 0, 0, 0)
        with enter(rig.config.netns):
            bpf.call(BPF_PROG_ATTACH, attr)  # type: ignore[arg-type]  # not in the pipeline
        try:
            (ours,) = at(rig, lxc)
            assert ours.entry == links.Entry(support.program_id(fd), 0)
            message = fails_unchanged(rig, WithoutLink)
            assert at(rig, lxc) == (ours,)
        finally:
            with enter(rig.config.netns):
                bpf.call(BPF_PROG_DETACH, attr)  # type: ignore[arg-type]
    assert message == f"{lxc} ingress: {ours} is attached by tcx without a link: detach it"
    rig.reload("pod-1")
    assert [found.entry.link_id != 0 for found in at(rig, lxc)] == [True]


@pytest.mark.parametrize("there", [None, TC, TCX], ids=["first load", "tc", "tcx"])
def test_no_success_is_reported_over_an_empty_hook(rig: Rig, lxc: str, there: Attachment | None) -> None:
    """Somebody detaches the link between the attach and the commit."""
    if there is not None:
        rig.configure(attach=there)
        rig.reload("pod-1")
    rig.configure(attach=TCX)

    def detach(step: Step, work: Workspace) -> None:
        (found,) = at(rig, lxc)
        fd = links.fd_by_id(found.entry.link_id)
        links.detach(fd)
        os.close(fd)

    before = rig.state()
    with pytest.raises(HookEmptied, match=f"{lxc} ingress: cil_from_container is not attached any more"):
        rig.reload("pod-1", observer=Gate(detach, before="commit"))
    assert before.differences(rig.state()) == []
    rig.reload("pod-1")
    assert len(at(rig, lxc)) == 1


def test_a_rollback_that_cannot_query_the_hook_leaves_no_link(rig: Rig, lxc: str, tmp_path: Path) -> None:
    """The link lives by its pin alone: that goes whatever else cannot be undone."""
    netns, way = rig.config.netns, tmp_path / "netns"
    way.symlink_to(netns)
    rig.configure(netns=way)

    def lose(step: Step, work: Workspace) -> None:
        way.unlink()
        support.inject(step, work)

    with pytest.raises(RollbackFailed):
        rig.reload("pod-1", observer=Gate(lose, after="attach ingress"))
    rig.configure(netns=netns)
    support.until(lambda: at(rig, lxc) == (), "the link gone")


def test_devices_lose_their_links_and_pins(rig: Rig) -> None:
    """A device with a dot in its name leaves the list, and one is gone; no directory of links is left of them."""
    for name in ("d0.100", "d1"):
        ip(str(rig.config.netns), "link", "add", name, "type", "bridge")
    rig.configure(devices=("eth0", "d0.100", "d1"))
    rig.reload("host")
    assert [found.name for found in at(rig, "d0.100")] == ["cil_from_netdev"]
    assert sorted(os.listdir(rig.config.devices_links)) == ["cilium_host", "cilium_net", "d0-100", "d1", "eth0"]
    ip(str(rig.config.netns), "link", "delete", "d1")
    rig.configure(devices=("eth0",))
    rig.reload("host")
    assert at(rig, "d0.100") == ()
    assert sorted(os.listdir(rig.config.devices_links)) == ["cilium_host", "cilium_net", "eth0"]


@pytest.mark.parametrize("was_a_device", [False, True])
def test_an_interface_whose_name_differs_in_a_dot_takes_no_device_its_pins(rig: Rig, was_a_device: bool) -> None:
    """Their pins would have the same names; only one of them is a device."""
    for name in ("d0.100", "d0-100"):
        ip(str(rig.config.netns), "link", "add", name, "type", "bridge")
    rig.configure(devices=("eth0", "d0-100") if was_a_device else ("eth0",))
    rig.reload("host")
    rig.configure(devices=("eth0", "d0.100"))
    for _ in range(2):
        rig.reload("host")
        (found,) = at(rig, "d0.100")
        assert found.entry.link_id == pinned_id(rig.config.device_links("d0.100") / "cil_from_netdev")
        assert at(rig, "d0-100") == at(rig, "d0-100", EGRESS) == ()


def test_a_renamed_device_keeps_its_link(rig: Rig) -> None:
    """It is found at the hook and pinned under the new name; the pin under the old one goes, and not the link."""
    netns = str(rig.config.netns)
    ip(netns, "link", "add", "old0", "type", "bridge")
    rig.configure(devices=("eth0", "old0"))
    rig.reload("host")
    (before,) = at(rig, "old0")
    ip(netns, "link", "set", "old0", "name", "new0")
    rig.configure(devices=("eth0", "new0"))
    rig.reload("host")
    (found,) = at(rig, "new0")
    assert found.entry.link_id == before.entry.link_id == pinned_id(rig.config.device_links("new0") / "cil_from_netdev")
    assert sorted(os.listdir(rig.config.devices_links)) == ["cilium_host", "cilium_net", "eth0", "new0"]


@pytest.mark.parametrize("count", [2, 3])
def test_devices_that_change_names_keep_their_links(rig: Rig, count: int) -> None:
    """Each gets the name of the next one. A link is pinned after each step: it lives by that if the reload dies."""
    names = ("one0", "two0", "three0")[:count]
    later = dict(zip(names, (*names[1:], names[0]), strict=True))
    add_devices(rig, *names)
    was = {name: at(rig, name)[0].entry.link_id for name in names}
    rename(rig, {**{name: f"x-{name}" for name in names}, **{f"x-{name}": later[name] for name in names}})
    for target in names:
        fails_unchanged(rig, Injected, "host", gate=Gate(support.inject, after="attach ingress", target=target))
        assert links_of_devices(rig, *names) == was
    rig.reload("host", observer=Gate(all_pinned(rig, set(was.values())), after="*"))
    for name in names:
        (found,) = at(rig, later[name])
        assert found.entry.link_id == was[name]
    assert links_of_devices(rig, *names) == {later[name]: was[name] for name in names}


@pytest.mark.parametrize("devices", [("one0", "two0"), ("two0", "one0")], ids="-".join)
def test_a_renamed_device_keeps_its_link_while_another_takes_its_name(rig: Rig, devices: tuple[str, ...]) -> None:
    """Whichever of them comes first: the link of the renamed one is pinned after each step."""
    add_devices(rig, "one0")
    (was,) = links_of_devices(rig, "one0").values()
    ip(str(rig.config.netns), "link", "add", "new0", "type", "bridge")
    rename(rig, {"one0": "two0", "new0": "one0"})
    rig.configure(devices=devices)
    for target in devices:
        fails_unchanged(rig, Injected, "host", gate=Gate(support.inject, after="attach ingress", target=target))
        assert links_of_devices(rig, "one0") == {"one0": was}
    rig.reload("host", observer=Gate(all_pinned(rig, {was}), after="*"))
    assert links_of_devices(rig, "two0") == {"two0": was}
    assert [found.entry.link_id for found in at(rig, "one0")] == list(links_of_devices(rig, "one0").values())


def test_directories_of_a_killed_reload_go(rig: Rig, pins: Path) -> None:
    """Killed between two calls of their removal: with and without the inner one."""
    rig.configure(attach=TC)
    for left in (pins, pins.parent):
        left.mkdir(parents=True)
        rig.reload("pod-1")
        assert not pins.parent.exists()


def test_a_sweep_takes_links_of_endpoints_that_are_gone(rig: Rig, lxc: str, pins: Path) -> None:
    """At once, so that their maps are of no use any more; a link that another endpoint has by now goes on."""
    rig.reload("pod-1")
    number = rig.node.pod("pod-1").endpoint_id
    with ExitStack() as stack:
        stale = attach_by_hand(stack, rig, "eth0", name="cil_from_container")
        with links.pinned(pins / "cil_from_container") as taken:
            assert taken is not None
            for other, link in ((998, taken), (999, stale)):
                directory = rig.config.endpoint_links(other)
                directory.mkdir(parents=True)
                bpf.obj_pin(link, directory / "cil_from_container")
        removed = sweep(rig.config, rig.netlink, {1, 2, number})
        assert removed == ["links of endpoint 998", "links of endpoint 999"]
        assert at(rig, "eth0") == ()
    assert [found.entry.link_id for found in at(rig, lxc)] == [pinned_id(pins / "cil_from_container")]
    assert os.listdir(pins.parents[1]) == [str(number)]


def test_unload_takes_links_and_pins_away(rig: Rig, lxc: str, pins: Path) -> None:
    endpoint = rig.endpoint("pod-1")
    rig.reload("pod-1", routes=True)
    rig.loader.unload(endpoint, forget=lambda: None)
    assert (at(rig, lxc), at(rig, lxc, EGRESS)) == ((), ())
    assert not pins.parent.exists()

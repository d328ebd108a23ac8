"""unload.py: what reloads of a pod have made goes, and nothing else."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.errors import Cancelled, NetlinkError
from datapath.kernel import hooks
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import slots
from datapath.kernel.map import open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.scenario.gate import Gate
from lab.system.mounts import mount, umount
from lab.watch.descriptors import held_maps
from lab.watch.snapshot import take
from tests.datapath import support
from tests.datapath.support import Rig
from tests.lab.wires import ip

pytestmark = pytest.mark.privileged

both_modes = pytest.mark.parametrize("routes", [False, True], ids=["routes off", "routes on"])


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=2) as made:
        for name in ("host", "pod-1", "pod-2"):
            made.reload(name)
        yield made


def nothing() -> None:
    """Stand in for a control plane that has nothing to forget."""


def unload(rig: Rig, name: str, forget: Callable[[], None] = nothing) -> None:
    rig.loader.unload(rig.endpoint(name), forget=forget)


def routes_to(rig: Rig, name: str) -> list[str]:
    """Return the devices to which the host routes of a pod lead."""
    pod = rig.node.pod(name)
    return [
        found["dev"]
        for address in (pod.ipv4, pod.ipv6)
        for found in support.ip(rig.config.netns, f"-{address.version}", "route", "show", "exact", str(address))
    ]


@both_modes
def test_everything_of_the_endpoint_goes_and_nothing_else(rig: Rig, routes: bool) -> None:
    """Also the route that another version of Cilium had written."""
    rig.node.add_pod("late")
    late = rig.node.pod("late")
    support.ip(rig.config.netns, "link", "set", late.ifname, "up")
    before, programs = take(rig.node), take(rig.node).programs
    rig.reload("late", routes=routes)
    if routes:
        ip(str(rig.config.netns), "route", "replace", f"{late.ipv4}/32", "dev", late.ifname, "proto", "kernel")
    unload(rig, "late")
    now = take(rig.node)
    assert {place: found for place, found in now.filters.items() if found} == before.filters
    assert now.pins.keys() == before.pins.keys()
    assert (now.policy, now.routes, now.slots) == (before.policy, before.routes, before.slots)
    assert routes_to(rig, "late") == []
    assert not (rig.config.state / str(late.endpoint_id)).exists()
    support.until(lambda: take(rig.node).programs == programs, "the pod's programs are gone")
    assert rig.dead_calls() == []


def test_no_map_of_the_endpoint_is_kept_open(rig: Rig) -> None:
    """What a loader keeps of shared maps for its next reload, nobody asks for again."""
    number = rig.node.pod("pod-1").endpoint_id
    rig.reload("pod-1")
    with open_pin(rig.config.globals / f"cilium_policy_{number:05d}") as policy:
        ident = policy.info.id
    assert ident in held_maps()
    unload(rig, "pod-1")
    assert ident not in held_maps()


def test_foreign_filters_and_routes_stay(rig: Rig) -> None:
    """Those of others at the pod's hooks, of another chain, and to the pod through another interface."""
    pod = rig.node.pod("pod-1")
    words = ["protocol", "all", "u32", "match", "u32", "0", "0"]
    for where in (["prio", "7"], ["chain", "5", "prio", "1"]):
        support.tc(rig.config.netns, "filter", "add", "dev", pod.ifname, "ingress", *where, *words)
    ip(str(rig.config.netns), "route", "add", f"{pod.ipv4}/32", "dev", "cilium_host")
    unload(rig, "pod-1")
    found = hooks.all_filters(rig.netlink, pod.ifindex, Direction.INGRESS)
    assert {str(f) for f in found} == {"u32", "u32 (chain 5)"}
    assert routes_to(rig, "pod-1") == ["cilium_host"]


def test_twice_and_without_an_interface(rig: Rig) -> None:
    support.ip(rig.config.netns, "link", "del", rig.node.pod("pod-1").ifname)
    before = take(rig.node)
    for _ in range(2):
        unload(rig, "pod-1")
    number = rig.node.pod("pod-1").endpoint_id
    assert take(rig.node).pins.keys() == {name for name in before.pins if f"{number:05d}" not in name}
    assert number not in take(rig.node).policy


def test_the_control_plane_forgets_between_the_filters_and_the_slot(rig: Rig) -> None:
    """In another order a packet finds the endpoint, and its slot empty (cilium issue 32167)."""
    pod = rig.node.pod("pod-1")
    seen: list[tuple[int, bool]] = []

    def forget() -> None:
        filters = rig.attached(pod.ifname, Direction.INGRESS)
        seen.append((len(filters), pod.endpoint_id in take(rig.node).policy))

    unload(rig, "pod-1", forget)
    assert seen == [(0, True)]


def test_a_pod_made_anew_under_the_same_name_keeps_its_programs(rig: Rig) -> None:
    """The old one is taken out late (cilium issues 44530 and 44536): the interface has the name, and is another."""
    old = rig.endpoint("pod-1", routes=True)
    rig.loader.apply(rig.loader.plan(old, subject="pod-1"))
    netns = str(rig.config.netns)
    ip(netns, "link", "del", old.ifname)
    ip(netns, "link", "add", old.ifname, "type", "veth", "peer", "name", "peer")
    ip(netns, "link", "set", old.ifname, "up")
    # Its successor has its name and its addresses, and an interface and a number of its own.
    new = replace(old, id=old.id + 50, ifindex=rig.netlink.ifindex(old.ifname))
    assert new.ifindex != old.ifindex
    rig.loader.apply(rig.loader.plan(new, subject="pod-1"))
    before = [rig.attached(new.ifname, direction) for direction in Direction]
    assert all(before)
    rig.loader.unload(old, forget=nothing)
    assert [rig.attached(new.ifname, direction) for direction in Direction] == before
    assert routes_to(rig, "pod-1") == [new.ifname] * 2
    assert not rig.pin(f"cilium_calls_{old.id:05d}").exists()
    with open_pin(rig.pin(f"cilium_calls_{new.id:05d}")) as pinned:
        assert slots(pinned.info.id)
    rig.loader.unload(new, forget=nothing)
    assert [rig.attached(new.ifname, direction) for direction in Direction] == [(), ()]
    assert routes_to(rig, "pod-1") == []


def test_an_interface_that_cannot_be_looked_up_is_not_gone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint is not forgotten while its filters may be attached: the next attempt finds everything."""
    pod = rig.node.pod("pod-1")
    before = take(rig.node)

    def no_answer(self: NetlinkSocket, what: str, message: bytes) -> bytes:
        raise NetlinkError(what, errno.ETIMEDOUT, "no answer")

    with monkeypatch.context() as patch:
        patch.setattr(NetlinkSocket, "get", no_answer)
        with pytest.raises(NetlinkError, match=f"look up {pod.ifname}: no answer"):
            unload(rig, "pod-1", lambda: pytest.fail("forgotten"))
    assert take(rig.node) == before
    unload(rig, "pod-1")
    assert pod.endpoint_id not in take(rig.node).policy


def test_waits_for_a_reload_of_the_endpoint(rig: Rig) -> None:
    """Half of what a reload makes would come after the rest was taken away."""
    inside, go = threading.Event(), threading.Event()

    def stop(step: Step, work: Workspace) -> None:
        inside.set()
        assert go.wait(20)

    pod = rig.node.pod("pod-1")
    plan = rig.plan("pod-1")
    with ThreadPoolExecutor(2) as pool:
        reload = pool.submit(rig.loader.apply, plan, observer=Gate(stop, before="attach ingress"))
        assert inside.wait(20)
        forgotten: list[bool] = []
        unloading = pool.submit(rig.loader.unload, rig.endpoint("pod-1"), forget=lambda: forgotten.append(True))
        cancel = threading.Event()
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Cancelled, match="waiting for"):
            rig.loader.unload(rig.endpoint("pod-1"), forget=nothing, cancel=cancel)
        assert forgotten == []
        go.set()
        reload.result(20)
        unloading.result(20)
    assert forgotten == [True]
    assert rig.attached(pod.ifname, Direction.INGRESS) == ()
    assert pod.endpoint_id not in take(rig.node).policy


def test_reloads_that_waited_for_it_still_exclude_each_other(rig: Rig) -> None:
    """The lock's file goes with the endpoint: one that waited for it must not share the endpoint with a later one."""
    together: list[int] = []
    busy = threading.Lock()

    def alone(step: Step, work: Workspace) -> None:
        if not busy.acquire(blocking=False):
            together.append(1)
            return
        threading.Event().wait(0.2)
        busy.release()

    def reload() -> None:
        rig.loader.apply(plans.pop(), observer=Gate(alone, after="load programs"))

    plans = [rig.plan("pod-1") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        waiting = []

        def forget() -> None:
            waiting.append(pool.submit(reload))
            lock = rig.config.state / str(rig.node.pod("pod-1").endpoint_id) / "lock"
            support.until(lambda: _open(lock) == 2, "the reload waits")

        unload(rig, "pod-1", forget)
        waiting += [pool.submit(reload) for _ in range(2)]
        for each in waiting:
            each.result(30)
    assert together == []
    assert rig.dead_calls() == []


def _open(path: Path) -> int:
    """Return how many descriptors of this process are open on a file."""
    return sum(target == str(path) for target in support.descriptors())


def test_a_directory_that_cannot_be_removed_is_an_error(rig: Rig) -> None:
    directory = rig.config.state / str(rig.node.pod("pod-1").endpoint_id)
    (directory / "kept").mkdir()
    mount("tmpfs", directory / "kept")
    try:
        with pytest.raises(OSError, match="busy") as info:
            unload(rig, "pod-1")
    finally:
        umount(directory / "kept")
    assert info.value.errno == errno.EBUSY
    unload(rig, "pod-1")
    assert not directory.exists()


@pytest.mark.parametrize("what", ["filter", "qdisc", "interface"])
def test_what_goes_meanwhile_is_removed(rig: Rig, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    pod = rig.node.pod("pod-1")
    netns = rig.config.netns
    listed = hooks.filters
    gone: list[str] = []

    def go(netlink: NetlinkSocket, ifindex: int, direction: Direction) -> tuple[hooks.Filter, ...]:
        found = listed(netlink, ifindex, direction)
        if not gone:
            gone.append(what)
            if what == "interface":
                support.ip(netns, "link", "del", pod.ifname)
            elif what == "qdisc":
                support.tc(netns, "qdisc", "del", "dev", pod.ifname, "clsact")
            else:
                support.tc(netns, "filter", "del", "dev", pod.ifname, str(direction))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(hooks, "filters", go)
        unload(rig, "pod-1")
    assert gone
    assert pod.endpoint_id not in take(rig.node).policy
    assert not (rig.config.state / str(pod.endpoint_id)).exists()

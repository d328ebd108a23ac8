"""loader.py: whole reloads, many at a time, from threads and processes; and what they leave behind: nothing."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.errors import Cancelled, LinkNotFound
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_maps, slots
from datapath.kernel.map import open_pin
from datapath.kernel.pins import map_id
from datapath.loader import Loader
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.scenario.gate import Gate
from lab.watch.snapshot import take
from tests.datapath import support
from tests.datapath.reload.crasher import Request, crasher
from tests.datapath.support import Rig
from tests.lab.wires import ip

pytestmark = pytest.mark.privileged

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=2, tunnel=True, devices=("eth0",)) as made:
        yield made


def hooks_of(rig: Rig) -> dict[tuple[str, str], str]:
    """Return which program is where; every one of them at priority 1 and handle 1, and alone."""
    found = {}
    for (ifname, direction), filters in take(rig.node).filters.items():
        (only,) = filters
        assert (only.priority, only.handle) == (1, 1)
        assert only.name.endswith(f"-{ifname}")
        found[ifname, str(direction)] = only.name.removesuffix(f"-{ifname}")
    return found


def check_calls(rig: Rig, calls: str, *hooks: tuple[str, Direction]) -> None:
    """The pinned calls map is the one that the entry programs use, and all its programs are of one load."""
    ident = map_id(rig.pin(calls))
    filled = slots(ident)
    assert filled, f"{calls} is empty"
    attached = {f.program_id for place in hooks for f in rig.attached(*place)}
    # Not every entry program makes tail calls; those that do use this map, and no other.
    used = {m for program in attached for m in program_maps(program) if slots(m) is not None}
    assert len(attached) == len(hooks)
    assert used == {ident}
    for program in filled.values():
        assert {m for m in program_maps(program) if slots(m) is not None} <= {ident}


class TestHappyPath:
    @pytest.mark.parametrize("routes", [False, True], ids=["endpoint routes off", "endpoint routes on"])
    def test_pod(self, rig: Rig, routes: bool) -> None:
        pod = rig.node.pod("pod-1")
        for _ in range(2):
            plan = rig.plan("pod-1", routes=routes)
            outcome = rig.loader.apply(plan)
            wanted = {(pod.ifname, "ingress"): "cil_from_container"}
            if routes:
                wanted[pod.ifname, "egress"] = "cil_to_container"
            assert hooks_of(rig) == wanted
            assert {(a.ifname, a.direction): a.program for a in outcome.attached} == wanted
            assert (outcome.subject, outcome.endpoint_id) == ("pod-1", pod.endpoint_id)
            assert (outcome.generation, outcome.warnings, outcome.migrated) == (plan.generation, (), ())
            assert [(span.step, span.target) for span in outcome.spans] == [step.key for step in plan.steps]
            hooks = [(pod.ifname, INGRESS), *([(pod.ifname, EGRESS)] if routes else [])]
            check_calls(rig, f"cilium_calls_{pod.endpoint_id:05d}", *hooks)
            assert rig.leftovers() == []
            snapshot = take(rig.node)
            assert snapshot.policy.keys() == {pod.endpoint_id}
            assert snapshot.routes == ({str(a): pod.ifindex for a in (pod.ipv4, pod.ipv6)} if routes else {})
            assert (rig.config.state / str(pod.endpoint_id) / "bpf_lxc.o").stat().st_size > 0

    def test_host(self, rig: Rig) -> None:
        for _ in range(2):
            outcome = rig.reload("host")
            wanted = {
                ("cilium_host", "ingress"): "cil_to_host",
                ("cilium_host", "egress"): "cil_from_host",
                ("cilium_net", "ingress"): "cil_to_host",
                ("eth0", "ingress"): "cil_from_netdev",
                ("eth0", "egress"): "cil_to_netdev",
            }
            assert hooks_of(rig) == wanted
            assert {(a.ifname, a.direction): a.program for a in outcome.attached} == wanted
            ifindex = {name: rig.netlink.ifindex(name) for name in ("cilium_net", "eth0")}
            check_calls(rig, "cilium_calls_hostns_00001", ("cilium_host", INGRESS), ("cilium_host", EGRESS))
            # No packet gets from cil_to_host alone to any of the others.
            assert not slots(map_id(rig.pin(f"cilium_calls_netdev_{ifindex['cilium_net']:05d}")))
            check_calls(rig, f"cilium_calls_netdev_{ifindex['eth0']:05d}", ("eth0", INGRESS), ("eth0", EGRESS))
            names = {path.name for path in (rig.config.state / "1").iterdir()}
            assert names == {"bpf_host.o", "bpf_host_cilium_net.o", "bpf_netdev_eth0.o", "ep_config.h", "lock"}
            assert rig.leftovers() == []

    def test_overlay(self, rig: Rig) -> None:
        for _ in range(2):
            rig.reload("overlay")
            wanted = {("cilium_vxlan", "ingress"): "cil_from_overlay", ("cilium_vxlan", "egress"): "cil_to_overlay"}
            assert hooks_of(rig) == wanted
            check_calls(rig, "cilium_calls_overlay_2", ("cilium_vxlan", INGRESS), ("cilium_vxlan", EGRESS))
            assert rig.leftovers() == []

    def test_missing_device_is_left_out(self, rig: Rig) -> None:
        rig.configure(devices=("eth0", "eth7"))
        outcome = rig.reload("host")
        assert outcome.warnings == ("device eth7 does not exist: left out",)
        assert ("eth0", "ingress") in hooks_of(rig)

    def test_missing_cilium_net_is_an_error(self, rig: Rig) -> None:
        ip(str(rig.config.netns), "link", "del", "cilium_net")
        with pytest.raises(LinkNotFound, match="cilium_host does not exist"):
            rig.reload("host")  # the pair went together

    def test_what_a_plan_says_is_not_done(self, rig: Rig) -> None:
        before = rig.state()
        for subject in ("pod-1", "host", "overlay"):
            assert rig.plan(subject).describe()
        assert before.differences(rig.state()) == []

    def test_verified_in_several_threads(self, rig: Rig) -> None:
        """Other threads verify too, they end with the loader, and the outcome tells what they did."""
        before = threading.active_count()
        with Loader(rig.config, verifiers=2) as loader:
            for subject in ("pod-1", "host"):
                plan = loader.plan(rig.endpoint(subject), subject=subject)
                outcome = loader.apply(plan)
                for span in outcome.spans:
                    for helper in span.helpers:
                        assert span.step == "load programs"
                        assert helper.tid != span.work.tid
                        assert helper.start_ns <= helper.end_ns
        assert threading.active_count() == before
        assert rig.dead_calls() == []


class TestManyAtATime:
    def test_all_pods(self, templates: Path) -> None:
        with support.rig(templates, pods=12) as rig, ThreadPoolExecutor(8) as pool:
            pods = [pod.name for pod in rig.node.pods]
            for routes in (False, True, False):
                outcomes = list(pool.map(lambda name, on=routes: rig.reload(name, routes=on), pods))
                assert [outcome.subject for outcome in outcomes] == pods
                assert len(hooks_of(rig)) == len(pods) * (1 + routes)
                assert rig.leftovers() == []
                assert rig.dead_calls() == []

    def test_one_endpoint_by_two_threads(self, rig: Rig) -> None:
        """They wait for each other: at no moment do two of them run."""
        inside, most = [0], [0]
        lock = threading.Lock()

        def enter(step: Step, work: Workspace) -> None:
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])

        def leave(step: Step, work: Workspace) -> None:
            with lock:
                inside[0] -= 1

        class Watch:
            def before(self, step: Step, work: Workspace) -> None:
                if step.name == "compile":
                    enter(step, work)

            def after(self, step: Step, work: Workspace) -> None:
                if step.name == "commit":
                    leave(step, work)

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda _: rig.reload("pod-1", observer=Watch()), range(16)))
        assert most == [1]
        assert len({outcome.attached[0].program_id for outcome in done}) == 16
        assert rig.leftovers() == []
        assert rig.dead_calls() == []
        check_calls(rig, "cilium_calls_00101", (rig.node.pod("pod-1").ifname, INGRESS))

    def test_cancelled_while_another_reloads_the_same_endpoint(self, rig: Rig) -> None:
        rig.reload("pod-1")
        held, go, cancel = threading.Event(), threading.Event(), threading.Event()

        def hold(step: Step, work: Workspace) -> None:
            held.set()
            assert go.wait(10)

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(rig.reload, "pod-1", observer=Gate(hold, before="load programs"))
            assert held.wait(10)
            second = pool.submit(rig.reload, "pod-1", cancel=cancel)
            cancel.set()
            error = second.exception(10)
            assert isinstance(error, Cancelled)
            assert "cancelled while waiting for" in str(error)
            go.set()
            assert first.result(10).subject == "pod-1"
        assert rig.leftovers() == []

    def test_two_processes_on_one_node(self, rig: Rig, templates: Path) -> None:
        """Another process reloads the same pod and the other one, and both migrate the shared map back and forth."""
        sizes = ["4096", "8192"]
        for size in sizes:
            rig.configure(defines=(("IPCACHE_MAP_SIZE", size),))
            rig.reload("pod-1")
        stop = threading.Event()
        codes: list[int] = []

        def other() -> None:
            with crasher() as process:
                while not stop.is_set():
                    number = len(codes)
                    wanted = Request(
                        rig.node.name,
                        str(templates),
                        f"pod-{1 + number % 2}",
                        defines=[("IPCACHE_MAP_SIZE", sizes[number // 2 % 2])],
                    )
                    codes.append(process.run(wanted))

        thread = threading.Thread(target=other)
        thread.start()
        try:
            support.until(lambda: bool(codes), "the other process reloads", seconds=10)
            begin = time.monotonic()
            rounds = 0
            while (rounds < 3 or len(codes) < 3 or time.monotonic() < begin + 1.5) and time.monotonic() < begin + 30:
                rig.configure(defines=(("IPCACHE_MAP_SIZE", sizes[rounds % 3 // 2]),))
                rig.reload(f"pod-{1 + rounds % 2}")
                rounds += 1
        finally:
            stop.set()
            thread.join()
        assert set(codes) == {0}
        assert len(codes) >= 3
        assert rounds >= 3
        assert rig.leftovers() == []
        assert rig.dead_calls() == []
        with open_pin(rig.pin("cilium_ipcache")) as pinned:
            assert len(list(pinned.keys())) == 1


class TestLeaks:
    def counts(self, rig: Rig) -> dict[str, int]:
        now = take(rig.node)
        return {
            "programs": len(now.programs),
            "pins": len(now.pins),
            "calls maps": len(now.calls),
            "descriptors": len(support.descriptors()),
            "threads": threading.active_count(),
            "files": sum(1 for _ in rig.config.state.rglob("*")),
        }

    def test_fifty_reloads(self, rig: Rig) -> None:
        """Of everything, in both modes, with failures in between: as many objects as before."""
        subjects = [("pod-1", False), ("pod-1", True), ("pod-2", False), ("host", False), ("overlay", False)]
        for subject, routes in subjects * 2:
            rig.reload(subject, routes=routes)
        support.until(lambda: take(rig.node).programs == take(rig.node).reachable, "replaced programs unloaded")
        before = self.counts(rig)
        for number in range(1, 11):
            with pytest.raises(support.Injected):
                rig.reload("pod-1", routes=True, observer=Gate(support.inject, before="*", nth=number))
            for subject, routes in subjects:
                rig.reload(subject, routes=routes)
        support.until(lambda: self.counts(rig) == before, "the same counts as before")

    def test_nothing_is_open_when_the_loader_is_closed(self, rig: Rig) -> None:
        before = support.descriptors()
        with Loader(rig.config, verifiers=2) as loader:
            for subject in ("pod-1", "pod-1", "host"):
                loader.apply(loader.plan(rig.endpoint(subject), subject=subject))
            with ThreadPoolExecutor(4) as pool:
                plans = [loader.plan(rig.endpoint(name), subject=name) for name in ("pod-1", "pod-2") * 4]
                list(pool.map(loader.apply, plans))
        assert support.descriptors() == before

    def test_no_program_array_stays_open_between_reloads(self, rig: Rig) -> None:
        """An open descriptor would keep an array filled that the kernel has to empty, and hide the fault."""
        for subject in ("pod-1", "host", "overlay", "pod-1"):
            rig.reload(subject)
            assert support.dangerous_descriptors() == []


def test_generation_is_in_the_loaded_program(rig: Rig) -> None:
    """Substituted per load: a new generation is another program, and nothing was compiled for it."""
    rig.reload("pod-1")
    compiled: list[object] = []
    with Loader(rig.config, on_compile=lambda *what: compiled.append(what)) as loader:
        tags = set()
        for generation in (7001, 7002):
            endpoint = replace(rig.endpoint("pod-1"), generation=generation)
            outcome = loader.apply(loader.plan(endpoint, subject="pod-1"))
            assert outcome.generation == generation
            object_file = rig.config.state / "101" / "bpf_lxc.o"
            assert struct.pack("<I", generation) in object_file.read_bytes()
            tags.add(outcome.attached[0].program_id)
    assert compiled == []
    assert len(tags) == 2


def test_template_that_vanished_is_compiled_again(templates: Path, tmp_path: Path) -> None:
    """Somebody cleaned up under us (cilium issue 8817): the next reload must not fail."""
    with support.rig(tmp_path / "own", pods=1) as rig:
        (tmp_path / "own").mkdir()
        rig.reload("pod-1")
        for path in (tmp_path / "own").iterdir():
            for file in path.iterdir():
                os.unlink(file)
        rig.reload("pod-1")
        assert rig.dead_calls() == []

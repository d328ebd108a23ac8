"""steps.py: objects, maps and their migration, on a node."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.base.locks import Lock
from datapath.base.mapnames import CONNECTIONS
from datapath.errors import CompileError, MapTooSmall, PinPathError, ProgramNotFound, ReloadlabError, VerifierError
from datapath.kernel import bpf
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_maps
from datapath.kernel.map import open_pin
from datapath.kernel.pins import PENDING, map_id
from datapath.load.layout import is_compared
from datapath.load.maps import differences
from datapath.load.types import TypeStore
from datapath.object.spec import MapSpec
from datapath.reload.outcome import Outcome
from datapath.reload.step import Step
from datapath.reload.transaction import RollbackFailed
from datapath.reload.workspace import Workspace
from lab.scenario.gate import Gate
from tests.datapath import support
from tests.datapath.support import Injected, Rig, fails_unchanged
from tests.exhaustive import EXHAUSTIVE
from tests.lab.abi.kernelmaps import create
from tests.lab.abi.recorded import layouts_of

pytestmark = pytest.mark.privileged

REFUSED = ("REJECTED_BY_VERIFIER", "1")
CHANGES = {
    "type": ("MAP_TYPE", "BPF_MAP_TYPE_HASH"),
    "key_size": ("KEY_PAD", "1"),
    "value_size": ("VALUE_PAD", "1"),
    "max_entries": ("MAP_SIZE", "4096"),
    "flags": ("MAP_FLAGS", "(BPF_F_NO_PREALLOC|BPF_F_NUMA_NODE)"),
}
"""What a build is changed by, per property: the ending of the macro (see bpf/lib/config.h) and its value."""
POLICY, IPCACHE = "cilium_policy_00101", "cilium_ipcache"
CALLS = "cilium_calls_00101"

MAPS = {POLICY: "endpoint's map", IPCACHE: "shared map"}
maps = pytest.mark.parametrize("name", MAPS, ids=MAPS.values())
TAKEN_BACK = [
    pytest.param(step, field, name, id=f"{step}-{field}-{MAPS[name]}")
    for turn, step in enumerate(["open maps", "load programs", "commit"])
    for number, (field, name) in enumerate(itertools.product(CHANGES, MAPS))
    if EXHAUSTIVE or (number + turn) % 3 == 0
]
"""Each difference of each map, taken back from one of the steps; with EXHAUSTIVE from each of them."""


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    # With a tunnel as test_crash.py has it: what is compiled for one serves both.
    with support.rig(templates, pods=2, tunnel=True, devices=("eth0",)) as made:
        yield made


def change(name: str, field: str) -> tuple[str, str]:
    ending, value = CHANGES[field]
    return f"{'POLICY' if name == POLICY else 'IPCACHE'}_{ending}", value


def rig_map(rig: Rig, name: str) -> MapSpec:
    """Return the definition of a map in the object of pod-1."""
    endpoint = rig.endpoint("pod-1")
    template = rig.loader.templates.fetch(endpoint)
    return template.own_spec(template.image.spec, template.substitution(endpoint)).maps[name]


def content(rig: Rig, name: str) -> dict[bytes, bytes]:
    with open_pin(rig.pin(name)) as pinned:
        return dict(pinned.items())


class TestMigration:
    @maps
    @pytest.mark.parametrize("field", CHANGES)
    def test_each_difference(self, rig: Rig, name: str, field: str) -> None:
        """The map is replaced; what fits is carried over, what does not is filled by the control plane."""
        rig.reload("pod-1")
        before, entries = map_id(rig.pin(name)), content(rig, name)
        rig.new_maps.clear()
        rig.configure(defines=(change(name, field),))
        outcome = rig.reload("pod-1")
        assert outcome.migrated == (name,)
        assert map_id(rig.pin(name)) != before
        assert rig.leftovers() == []
        same_layout = field in ("max_entries", "flags")
        assert rig.new_maps == ([] if same_layout else [name])
        if same_layout:
            assert content(rig, name) == entries
        assert len(content(rig, name)) == len(entries) == 1
        assert rig.reload("pod-1").migrated == (), "a map that fits was replaced"

    @pytest.mark.parametrize(("step", "field", "name"), TAKEN_BACK)
    def test_each_difference_taken_back(self, rig: Rig, name: str, field: str, step: str) -> None:
        for _ in range(2):
            rig.reload("pod-1")
        rig.configure(defines=(change(name, field),))
        fails_unchanged(rig, Injected, gate=Gate(support.inject, before=step))
        assert rig.loader.apply(rig.plan("pod-1")).migrated == (name,)

    @pytest.mark.parametrize("subject", ["pod-1", "host"])
    def test_refused_after_maps_were_moved(self, rig: Rig, subject: str) -> None:
        """The reference commit leaves `:pending` and fresh, empty maps behind here, while the old programs run on."""
        for _ in range(2):
            rig.reload("pod-1")
            rig.reload("host")
        rig.configure(defines=(REFUSED, change(POLICY, "max_entries"), change(IPCACHE, "value_size")))
        assert "tail_rejected_by_verifier" in fails_unchanged(rig, VerifierError, subject)
        assert rig.leftovers() == []
        assert rig.dead_calls() == []
        rig.configure(defines=())
        assert rig.reload(subject).migrated == ()

    @pytest.mark.parametrize("recorded", ["cilium_policy", "cilium_lxc"])
    def test_a_map_of_equal_size_and_other_fields_is_replaced(self, rig: Rig, recorded: str) -> None:
        """Made by the sources of 1.16, whose policy entries have a length that ours do not know."""
        rig.reload("pod-1")
        name = POLICY if recorded == "cilium_policy" else recorded
        with open_pin(rig.pin(name)) as ours:
            info = ours.info
        rig.pin(name).unlink()
        with create(name, layouts_of("1.16.5")[recorded], like=info) as pinned:
            assert differences(rig_map(rig, name), pinned.info) == []
            pinned.update(b"\x20\0\0\0".ljust(info.key_size, b"\7"), bytes(info.value_size))
            pinned.pin(rig.pin(name))
        rig.new_maps.clear()
        assert rig.reload("pod-1").migrated == (name,)
        assert rig.new_maps == [name], "what means something else must not be copied"
        assert len(content(rig, name)) == 1

    def test_sources_of_others_do_not_go_on_with_our_maps(self, rig: Rig) -> None:
        """Of ours the kernel knows no types. All maps of theirs have some, and fit from the second reload on.

        Connections stay where they are: what both know of one lies at the same place.
        """
        rig.reload("pod-1")
        present = {name for name in os.listdir(rig.config.globals) if is_compared(name)}
        rig.loader.types.close()
        rig.loader.types = TypeStore(all_maps=True)
        rig.new_maps.clear()
        migrated = rig.reload("pod-1").migrated
        assert POLICY in migrated
        assert set(migrated) == set(rig.new_maps) == {name for name in present if not name.startswith(CONNECTIONS)}
        assert rig.reload("pod-1").migrated == ()
        rig.loader.types.close()
        rig.loader.types = TypeStore()
        assert rig.reload("pod-1").migrated == (), "our own sources have these fields"

    def test_rules_that_do_not_fit_are_an_error(self, rig: Rig) -> None:
        """What is left out would be a rule that denies: nothing is replaced."""
        rig.reload("pod-1")
        with open_pin(rig.pin(POLICY)) as pinned:
            for number in range(9):
                pinned.update(b"\x40\0\0\0" + bytes([number + 1]) * 8, bytes(pinned.value_bytes))
        rig.configure(defines=(("POLICY_MAP_SIZE", "4"),))
        before = content(rig, POLICY)
        with pytest.raises(MapTooSmall, match=f"^map {POLICY} is too small: 6 entries do not fit into 4$"):
            rig.reload("pod-1")
        assert content(rig, POLICY) == before
        assert rig.leftovers() == []

    def test_new_maps_are_filled_before_a_program_is_attached(self, rig: Rig) -> None:
        seen: list[str] = []
        gate = Gate(lambda step, work: seen.extend(rig.new_maps), before="load programs")
        rig.reload("pod-1", observer=gate)
        assert {POLICY, IPCACHE} <= set(seen)
        assert CALLS not in seen, "a calls map is the loader's own"
        rig.new_maps.clear()
        rig.reload("pod-1")
        assert rig.new_maps == []

    def test_maps_are_filled_before_they_are_pinned(self, rig: Rig) -> None:
        """Whoever finds the pin of a map finds its whole content, whatever kills the reload."""
        pinned: list[str] = []
        rig.on_entry = lambda: pinned.extend(name for name in rig.new_maps[-1:] if rig.pin(name).exists())
        rig.reload("pod-1")
        assert {POLICY, IPCACHE} <= set(rig.new_maps)
        assert pinned == []
        rig.new_maps.clear()
        rig.configure(defines=(change(IPCACHE, "value_size"),))
        rig.reload("pod-1")
        assert rig.new_maps == [IPCACHE]
        assert pinned == []

    def test_what_packets_note_while_a_map_is_replaced_is_carried_over(self, rig: Rig) -> None:
        """In the old map, after its content was copied, until the last program is attached: fragments here."""
        name = "cilium_ipv4_frag_datagrams"
        late: list[bytes] = []
        rig.configure(defines=(("ENABLE_IPV4_FRAGMENTS", "1"),))
        rig.reload("pod-1")

        def note(step: Step, work: Workspace) -> None:
            pin = rig.pin(name + PENDING)
            if pin.exists():
                with open_pin(pin) as old:
                    late.append(bytes([len(late) + 1]) * old.info.key_size)
                    old.update(late[-1], bytes(old.value_bytes))

        rig.configure(defines=(("ENABLE_IPV4_FRAGMENTS", "1"), ("CILIUM_IPV4_FRAG_MAP_MAX_ENTRIES", "4096")))
        outcome = rig.reload("pod-1", observer=Gate(note, after="*"))
        assert outcome.migrated == (name,)
        assert len(late) > 5
        assert set(late) <= content(rig, name).keys()

    def test_calls_map_always_moves(self, rig: Rig) -> None:
        rig.reload("pod-1")
        before = map_id(rig.pin(CALLS))
        moved: list[int] = []
        gate = Gate(lambda step, work: moved.append(map_id(rig.pin(CALLS + PENDING))), before="open maps")
        outcome = rig.reload("pod-1", observer=gate)
        assert moved == [before]
        assert map_id(rig.pin(CALLS)) != before
        assert outcome.migrated == ()

    def test_shared_maps_keep_their_id(self, rig: Rig) -> None:
        rig.reload("pod-1")
        before = {name: map_id(rig.pin(name)) for name in os.listdir(rig.config.globals) if name != CALLS}
        rig.reload("pod-1")
        rig.reload("host")
        assert {name: map_id(rig.pin(name)) for name in before} == before


class TestLeftBehind:
    """Pins that a killed reload left: made by hand here, by kills in test_crash.py."""

    def test_one_pin_that_cannot_go_back_leaves_no_other_behind(self, rig: Rig) -> None:
        """The rollback says which one it was."""
        for _ in range(2):
            rig.reload("pod-1")
        rig.configure(defines=(change(POLICY, "max_entries"), change(IPCACHE, "max_entries")))

        def vandal(step: Step, work: Workspace) -> None:
            rig.pin(IPCACHE + PENDING).unlink()
            support.inject(step, work)

        with pytest.raises(RollbackFailed, match=f"repin maps bpf_lxc.o: .*{IPCACHE}{PENDING}"):
            rig.reload("pod-1", observer=Gate(vandal, before="open maps"))
        assert rig.leftovers() == []
        assert rig.pin(POLICY).exists()
        assert rig.dead_calls() == []

    def test_stale_pending_of_nobody(self, rig: Rig) -> None:
        """cilium issue 24013: the next reload must not fail on it, nor ever after."""
        rig.reload("pod-1")
        fd = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 47, name="stale")
        bpf.obj_pin(fd, rig.pin(CALLS + PENDING))
        os.close(fd)
        outcome = rig.reload("pod-1")
        assert outcome.warnings == (f"removed {CALLS}:pending, left by a reload that did not end",)
        assert rig.leftovers() == []
        assert rig.dead_calls() == []

    def test_moved_aside_and_never_replaced(self, rig: Rig) -> None:
        rig.reload("pod-1")
        for name in (CALLS, IPCACHE):
            rig.pin(name).rename(rig.pin(name + PENDING))
        before = map_id(rig.pin(IPCACHE + PENDING))
        outcome = rig.reload("pod-1")
        assert {warning.split()[0] for warning in outcome.warnings} == {"restored"}
        assert map_id(rig.pin(IPCACHE)) == before
        assert rig.leftovers() == []
        assert rig.dead_calls() == []

    def test_recovery_of_a_reload_that_fails_itself(self, rig: Rig) -> None:
        """What was recovered stays recovered: that state is no reload's own."""
        rig.reload("pod-1")
        rig.pin(CALLS).rename(rig.pin(CALLS + PENDING))
        rig.configure(defines=(REFUSED,))
        with pytest.raises(VerifierError):
            rig.reload("pod-1")
        assert rig.leftovers() == []
        assert rig.dead_calls() == []


class TestSharedMaps:
    """Reloads of one node share maps: who replaces one, or makes one, is alone meanwhile."""

    @pytest.fixture
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(4) as made:
            yield made

    def meanwhile(
        self, rig: Rig, pool: ThreadPoolExecutor, subject: str, other: str, at: str
    ) -> tuple[Exception | None, Outcome]:
        """Reload `subject` and fail it at the step `at`; start a reload of `other` there. Return what became of both.

        `other` gets time to end: it does, or waits for the first one.
        """
        running: list[Future[Outcome]] = []

        def start(step: Step, work: Workspace) -> None:
            began = threading.Event()
            gate = Gate(lambda _, __: began.set(), before="repin maps")
            running.append(pool.submit(rig.reload, other, observer=gate))
            assert began.wait(10)
            wait(running, timeout=0.2)
            support.inject(step, work)

        try:
            rig.reload(subject, observer=Gate(start, before=at, nth=1))
        except Injected as error:
            return error, running[0].result(10)
        return None, running[0].result(10)

    def assert_pins_are_used(self, rig: Rig, subject: str) -> None:
        """Every shared map that the pod's program uses is the pinned one."""
        (attached,) = rig.attached(rig.node.pod(subject).ifname, Direction.INGRESS)
        used = set(program_maps(attached.program_id))
        pinned = {map_id(rig.pin(name)) for name in os.listdir(rig.config.globals)}
        with_pins = {name for name in (IPCACHE, "cilium_metrics", "cilium_lxc") if rig.pin(name).exists()}
        assert with_pins == {IPCACHE, "cilium_metrics", "cilium_lxc"}
        assert used <= pinned, f"maps {used - pinned} are used and not pinned"

    @pytest.mark.parametrize("at", ["migrate maps", "load programs", "commit"])
    def test_made_by_a_first_load_that_fails(self, rig: Rig, pool: ThreadPoolExecutor, at: str) -> None:
        """Its maps go when it fails. Another pod that was loaded meanwhile must not be left with maps without pins."""
        error, outcome = self.meanwhile(rig, pool, "pod-1", "pod-2", at)
        assert isinstance(error, Injected)
        assert outcome.subject == "pod-2"
        self.assert_pins_are_used(rig, "pod-2")

    @pytest.mark.parametrize("at", ["open maps", "load programs", "commit"])
    def test_replaced_by_a_reload_that_fails(self, rig: Rig, pool: ThreadPoolExecutor, at: str) -> None:
        """The old map comes back; another pod that was loaded meanwhile must not use the one that goes."""
        for _ in range(2):
            rig.reload("pod-1")
            rig.reload("pod-2")
        rig.configure(defines=(change(IPCACHE, "max_entries"),))
        error, outcome = self.meanwhile(rig, pool, "pod-1", "pod-2", at)
        assert isinstance(error, Injected)
        assert outcome.migrated == (IPCACHE,), "the second pod must do it itself"
        self.assert_pins_are_used(rig, "pod-2")
        assert rig.leftovers() == []

    def test_lock_is_held_until_the_last_object_of_the_host(self, rig: Rig) -> None:
        """The host's plan repins once per object: the second repin must not let go of what the first one locked."""
        rig.reload("host")
        rig.configure(defines=(change(IPCACHE, "max_entries"),))
        free: list[str] = []

        def look(step: Step, work: Workspace) -> None:
            cancel = threading.Event()
            cancel.set()
            lock = Lock(rig.config.state / "maps.lock", cancel)
            try:
                lock.acquire(exclusive=False)
            except ReloadlabError:
                return
            finally:
                lock.close()
            free.append(f"{step.name} {step.target}")

        rig.reload("host", observer=Gate(look, before="*"))
        assert free == ["compile bpf_host.c", "write object bpf_host.o", "repin maps bpf_host.o"]

    def test_replaced_once_by_parallel_reloads(self, templates: Path) -> None:
        """Whoever comes first replaces the shared map, the others find it replaced; every pod migrates its own."""
        with support.rig(templates, pods=6, tunnel=True) as rig, ThreadPoolExecutor(4) as pool:
            pods = [pod.name for pod in rig.node.pods]
            list(pool.map(rig.reload, pods))
            entries = content(rig, IPCACHE)
            for size in ("4096", "8192"):
                rig.configure(defines=(("IPCACHE_MAP_SIZE", size), ("POLICY_MAP_SIZE", size)))
                outcomes = list(pool.map(rig.reload, pods))
                migrated = sorted(name for outcome in outcomes for name in outcome.migrated)
                own = [f"cilium_policy_{pod.endpoint_id:05d}" for pod in rig.node.pods]
                assert migrated == [IPCACHE, *own]
                assert content(rig, IPCACHE) == entries
                assert rig.leftovers() == []
                assert rig.dead_calls() == []
                for pod in pods:
                    self.assert_pins_are_used(rig, pod)

    def test_first_loads_in_parallel(self, templates: Path) -> None:
        """All create the same shared maps at once, and end with the same ones."""
        with support.rig(templates, pods=6, tunnel=True) as rig, ThreadPoolExecutor(4) as pool:
            pods = [pod.name for pod in rig.node.pods]
            list(pool.map(rig.reload, pods))
            for pod in pods:
                self.assert_pins_are_used(rig, pod)
            assert rig.dead_calls() == []

    def test_a_cancelled_reload_does_not_wait_for_the_lock(self, rig: Rig) -> None:
        rig.reload("pod-1")
        cancel = threading.Event()
        lock = Lock(rig.config.state / "maps.lock", threading.Event())
        lock.acquire(exclusive=True)
        try:
            gate = Gate(lambda _, __: cancel.set(), before="repin maps")
            with pytest.raises(ReloadlabError, match=r"cancelled while waiting for .*maps\.lock"):
                rig.reload("pod-1", observer=gate, cancel=cancel)
        finally:
            lock.close()


class TestBadInput:
    def test_source_that_does_not_compile(self, rig: Rig) -> None:
        rig.reload("pod-1")
        rig.configure(defines=(("count_hit", ")"),))
        assert "failed to compile bpf_lxc.o" in fails_unchanged(rig, CompileError)

    def test_missing_program(self, rig: Rig) -> None:
        rig.reload("pod-1")
        rig.configure(defines=(("cil_from_container", "from_somewhere"),))
        message = fails_unchanged(rig, ProgramNotFound)
        assert "bpf_lxc.o: no program cil_from_container found; it has " in message
        assert "from_somewhere" in message

    @pytest.mark.parametrize("subject", ["pod-1", "host"])
    @pytest.mark.parametrize("first", [True, False], ids=["first load", "reload"])
    def test_program_that_the_verifier_refuses(self, rig: Rig, subject: str, first: bool) -> None:
        if not first:
            rig.reload(subject)
            rig.reload(subject)
        rig.configure(defines=(REFUSED,))
        before = rig.state()
        with pytest.raises(VerifierError) as info:
            rig.reload(subject)
        assert "invalid access to packet" in info.value.summary
        assert len(info.value.log) > len(info.value.summary)
        assert before.differences(rig.state()) == []

    def test_pin_directory_that_is_no_bpffs(self, rig: Rig, tmp_path: Path) -> None:
        rig.configure(bpffs=tmp_path)
        with pytest.raises(PinPathError, match="is not on a BPF file system"):
            rig.reload("pod-1")
        assert list(tmp_path.iterdir()) == []

    def test_disk_that_is_full(self, templates: Path) -> None:
        with support.rig(templates, size="900k", pods=1) as rig:
            rig.reload("pod-1")
            rig.reload("pod-1")
            filler = rig.config.state / "filler"
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                filler.write_bytes(bytes(2 << 20))
            before = rig.state()
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                rig.reload("pod-1")
            assert before.differences(rig.state()) == []
            filler.unlink()
            rig.reload("pod-1")

"""Processes killed in the middle of a reload, and system calls that fail: what runs goes on, and the next reload heals.

A kill takes all descriptors with it: whatever kept a program array filled only by being open is seen to be missing.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from datapath.kernel.inventory import reach, slots
from datapath.kernel.map import open_pin
from datapath.kernel.pins import map_id
from lab.scenario.gate import Gate
from lab.watch.snapshot import take
from tests.datapath import support
from tests.datapath.reload.crasher import Crasher, Request, crasher
from tests.datapath.support import Injected, Rig
from tests.exhaustive import EXHAUSTIVE

pytestmark = pytest.mark.privileged

SIGKILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def killer() -> Iterator[Crasher]:
    with crasher() as made:
        yield made


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=1, tunnel=True, devices=("eth0",)) as made:
        yield made


def request(rig: Rig, templates: Path, subject: str, routes: bool, **more: object) -> Request:
    return Request(rig.node.name, str(templates), subject, routes, **more)  # type: ignore[arg-type]


def emptied() -> None:
    """Wait until the kernel has emptied the program arrays that lost their last pin or descriptor before now.

    It does so from a work queue: an array of ours that is let go now is emptied after them.
    """
    with ExitStack() as stack:
        fd = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="canary")
        ident = bpf.map_info(fd).id
        user = support.load_using(fd)
        stack.callback(os.close, user)
        bpf.map_update(fd, struct.pack("=I", 0), struct.pack("=I", user))
        os.close(fd)
        support.until(lambda: slots(ident) == {}, "the canary emptied")


def problems(rig: Rig) -> list[str]:
    emptied()
    return rig.dead_calls()


def heals(rig: Rig, subject: str, routes: bool) -> list[str]:
    """Reload, first in vain and then for good; return what is wrong meanwhile and afterwards."""
    with pytest.raises(Injected):
        rig.reload(subject, routes=routes, observer=Gate(support.inject, before="load programs"))
    wrong = [f"after a reload that failed: {what}" for what in problems(rig)]
    plan = rig.plan(subject, routes=routes)
    outcome = rig.loader.apply(plan)
    wrong += [f"after the next reload: {what}" for what in problems(rig)]
    wrong += [f"after the next reload: pin {name}" for name in rig.leftovers()]
    wrong += [f"left: {path}" for path in rig.config.state.rglob("*.o.*")]
    if outcome.generation != plan.generation or not outcome.attached:
        wrong.append(f"not reloaded: {outcome}")
    for path in rig.config.globals.glob("cilium_policy_*"):
        with open_pin(path) as pinned:
            if not list(pinned.keys()):
                wrong.append(f"{path.name} was never filled")
    return wrong


def map_name(ident: int) -> str:
    """Return the kernel's name of a map, of 15 characters."""
    fd = bpf.map_fd_by_id(ident)
    try:
        return bpf.map_info(fd).name
    finally:
        os.close(fd)


SUBJECTS = [("pod-1", False), ("pod-1", True), ("host", False), ("overlay", False)]
NAMES = ["pod", "pod with endpoint routes", "host", "overlay"]


HURTING = ["attach ingress", "attach egress", "commit"]


def some(names: Sequence[str], first: int, *, begin: int = 0) -> list[int]:
    """Return the steps that hurt, and of the others every second one; with EXHAUSTIVE all."""
    return [
        number
        for number, name in enumerate(names)
        if number >= begin and (EXHAUSTIVE or name in HURTING or number % 2 == first)
    ]


def killed(rig: Rig, templates: Path, killer: Crasher, subject: str, routes: bool, number: int) -> list[str]:
    """Kill a reload before its step of this number, or after the last one; return what is wrong then, and later."""
    steps = rig.plan(subject, routes=routes).steps
    last = number == len(steps)
    where = "after the last step" if last else f"before {number} ({steps[number].name} {steps[number].target})"
    doomed = request(rig, templates, subject, routes, nth=number - last, after=last)
    assert killer.run(doomed) == SIGKILLED
    wrong = [f"killed {where}: {what}" for what in problems(rig)]
    return wrong + [f"killed {where}, {what}" for what in heals(rig, subject, routes)]


@pytest.mark.parametrize(("subject", "routes"), SUBJECTS, ids=NAMES)
def test_killed_at_each_step(rig: Rig, templates: Path, killer: Crasher, subject: str, routes: bool) -> None:
    """The programs that are attached keep their tail calls all the time.

    Each plan is killed before each attach and commit, before every second other step, which are the steps between in a
    plan that is alike, and after the last one. With EXHAUSTIVE before all.
    """
    rig.reload(subject, routes=routes)
    wrong = []
    names = [step.name for step in rig.plan(subject, routes=routes).steps]
    for number in (*some(names, SUBJECTS.index((subject, routes)) % 2), len(names)):
        wrong += killed(rig, templates, killer, subject, routes, number)
    assert wrong == []


@pytest.mark.parametrize("number", range(2, 12))
def test_killed_at_each_step_of_a_first_load(templates: Path, killer: Crasher, number: int) -> None:
    """Nothing was there before; what there is afterwards is complete, maps of the control plane's included."""
    with support.rig(templates, pods=1) as rig:
        assert killed(rig, templates, killer, "pod-1", True, number) == []


@pytest.mark.parametrize(("old", "new"), [(False, True), (True, False)], ids=["from off to on", "from on to off"])
def test_killed_at_each_step_of_a_toggle(rig: Rig, templates: Path, killer: Crasher, old: bool, new: bool) -> None:
    """Each way before every second step, the other before those between, and both before attaches and the commit."""
    wrong = []
    names = [step.name for step in rig.plan("pod-1", routes=new).steps]
    for number in some(names, new, begin=7):
        rig.reload("pod-1", routes=old)
        assert killer.run(request(rig, templates, "pod-1", new, nth=number)) == SIGKILLED
        wrong += [f"killed before {number}: {what}" for what in problems(rig)]
        wrong += [f"killed before {number}, {what}" for what in heals(rig, "pod-1", new)]
    assert wrong == []


@pytest.mark.parametrize(("subject", "routes"), [("pod-1", True), ("host", False)], ids=["pod", "host"])
def test_killed_again_and_again(rig: Rig, templates: Path, killer: Crasher, subject: str, routes: bool) -> None:
    """Each kill between two attaches adds a program array that is in use: none of them may be let go.

    Up to three at once: that of the ingress program, of the egress program, and of the policy program.
    """
    names = [step.name for step in rig.plan(subject, routes=routes).steps]
    wrong = []
    rig.reload(subject, routes=routes)
    most = 0
    pairs = itertools.product(HURTING, HURTING) if EXHAUSTIVE else zip(HURTING, [*HURTING[1:], HURTING[0]], strict=True)
    for several in (*pairs, ("attach egress", "attach ingress", "attach ingress")):
        for name in several:
            nth = names.index(name)
            assert killer.run(request(rig, templates, subject, routes, nth=nth)) == SIGKILLED
            wrong += [f"killed before {several}: {what}" for what in problems(rig)]
        most = max(most, len(rig.leftovers()))
        wrong += [f"killed before {several}, {what}" for what in heals(rig, subject, routes)]
    assert wrong == []
    assert most >= 2, "there was no state with three arrays in use: this test shows nothing"


MIGRATED = ["IPCACHE_MAP_SIZE", "POLICY_MAP_SIZE", "IPCACHE_VALUE_PAD"]


@pytest.mark.parametrize("name", MIGRATED)
def test_killed_during_a_migration(rig: Rig, templates: Path, killer: Crasher, name: str) -> None:
    """The next reload, of the old build or the new, finds every map pinned once, with its content.

    Old and new take turns, so that each step meets both with one map or another. EXHAUSTIVE: both with each.
    """
    rig.reload("pod-1", routes=True)
    define = (name, "1" if "PAD" in name else "4096")
    steps = rig.plan("pod-1", routes=True).steps
    wrong = []
    states = [*itertools.product(range(3, len(steps), 2), ((), (define,)))]
    if not EXHAUSTIVE:
        states = [state for turn, state in enumerate(states) if (turn // 2 + turn + MIGRATED.index(name)) % 2]
    for number, defines in states:
        rig.configure(defines=())
        rig.reload("pod-1", routes=True)
        killed = request(rig, templates, "pod-1", True, nth=number, defines=[define])
        assert killer.run(killed) == SIGKILLED
        where = f"killed before {steps[number].name}, then {'new' if defines else 'old'}"
        wrong += [f"{where}: {what}" for what in problems(rig)]
        rig.configure(defines=defines)
        wrong += [f"{where}: {what}" for what in heals(rig, "pod-1", True)]
        with open_pin(rig.pin("cilium_ipcache")) as pinned:
            if len(list(pinned.keys())) != 1:
                wrong.append(f"{where}: the shared map lost its content")
    assert wrong == []


@pytest.mark.parametrize("later", ["old", "new"])
def test_what_the_control_plane_has_written_after_a_kill_is_there(
    rig: Rig, templates: Path, killer: Crasher, later: str
) -> None:
    """It writes to the map that is pinned; the one that the attached programs use comes back."""
    name, define = "cilium_ipcache", ("IPCACHE_MAP_SIZE", "4096")
    rig.reload("pod-1")
    number = [step.name for step in rig.plan("pod-1").steps].index("load programs")
    assert killer.run(request(rig, templates, "pod-1", False, nth=number, defines=[define])) == SIGKILLED
    rig.entries = 2
    with open_pin(rig.pin(name)) as pinned:
        assert pinned.info.max_entries == 4096
        key = struct.pack("=I", 1).ljust(pinned.info.key_size, b"\0")
        pinned.update(key, b"\1" * pinned.value_bytes)
    rig.configure(defines=(define,) if later == "new" else ())
    rig.reload("pod-1")
    with open_pin(rig.pin(name)) as pinned:
        assert (pinned.info.max_entries == 4096) == (later == "new")
        assert key in list(pinned.keys())  # a look-up in a trie would find a shorter prefix


@pytest.mark.parametrize("later", ["old", "new"])
def test_a_policy_map_in_use_stays_pinned_after_a_kill(rig: Rig, templates: Path, killer: Crasher, later: str) -> None:
    """Whoever writes policies finds both, that of the old program and that of the new policy program.

    So it is after a reload that fails, too. The next one that succeeds lets the old map go.
    """
    define = ("POLICY_MAP_SIZE", "4096")
    rig.reload("pod-1")
    number = [step.name for step in rig.plan("pod-1").steps].index("attach ingress")
    assert killer.run(request(rig, templates, "pod-1", False, nth=number, defines=[define])) == SIGKILLED

    def used() -> set[int]:
        now = take(rig.node)
        programs = {found.program_id for filters in now.filters.values() for found in filters}
        maps = reach(programs | set(now.policy.values())).maps
        return {ident for ident in maps if map_name(ident).startswith("cilium_policy_0")}

    def pinned() -> set[int]:
        return {map_id(path) for path in rig.config.globals.glob("cilium_policy_00101*")}

    assert len(used()) == 2
    rig.configure(defines=(define,) if later == "new" else ())
    for _ in range(2):
        with pytest.raises(Injected):
            rig.reload("pod-1", observer=Gate(support.inject, before="load programs"))
        assert used() <= pinned()
    assert any(warning.startswith("kept cilium_policy_00101:pending") for warning in rig.reload("pod-1").warnings)
    assert used() == pinned()
    assert len(used()) == 1
    assert rig.leftovers() == []


SMALL = [("POLICY_MAP_SIZE", "4096"), ("IPCACHE_MAP_SIZE", "4096"), ("POLICY_PROG_MAP_SIZE", "300")]
LARGE = [("POLICY_MAP_SIZE", "8192"), ("IPCACHE_MAP_SIZE", "8192"), ("POLICY_PROG_MAP_SIZE", "301")]


class Traced:
    """Reloads of pod-1 under strace. Each replaces maps: one of the endpoint, and two that are shared."""

    def __init__(self, rig: Rig, templates: Path, killer: Crasher, directory: Path) -> None:
        if shutil.which("strace") is None:
            pytest.skip("needs strace: apt-get install strace")
        self.trace, self.errors, self.warnings = (directory / name for name in ("trace", "errors", "warnings"))
        self.wanted = SMALL
        self._rig, self._templates, self._killer = rig, templates, killer
        for defines in (SMALL, LARGE):
            rig.configure(defines=tuple(defines))
            rig.reload("pod-1", routes=True)  # compiled now: later on the loader alone makes system calls

    def run(self, *injection: str) -> int:
        """Reload, with what strace shall make of some system calls; return the exit code."""
        options = ["-e", "trace=bpf,link,rename,unlink", *injection]
        return self._killer.run(
            Request(
                self._rig.node.name,
                str(self._templates),
                "pod-1",
                routes=True,
                defines=self.wanted,
                strace=options,
                output=str(self.trace),
                errors=str(self.errors),
                warnings=str(self.warnings),
            )
        )

    def succeeded(self) -> None:
        """Want the other maps from now on."""
        self.wanted = LARGE if self.wanted is SMALL else SMALL

    def calls(self, name: str) -> list[str]:
        """Return the system calls of this name that the last reload made, as strace writes them."""
        return [line for line in self.trace.read_text().splitlines() if line.startswith(f"{name}(")]

    def count(self, name: str) -> int:
        """Return how often the last reload made a system call."""
        return len(self.calls(name))


@pytest.fixture
def traced(rig: Rig, templates: Path, killer: Crasher, tmp_path: Path) -> Traced:
    return Traced(rig, templates, killer, tmp_path)


@pytest.mark.parametrize("name", ["link", "rename", "unlink", "bpf"])
def test_killed_between_system_calls(rig: Rig, traced: Traced, name: str) -> None:
    """Inside the steps: before each change of the file system, and here and there in between."""
    assert traced.run() == 0
    total = traced.count(name)
    assert total >= 1
    wrong = []
    for number in range(1, total + 1, 1 + total // (10 if EXHAUSTIVE else 6)):
        traced.succeeded()
        assert traced.run("-e", f"inject={name}:signal=SIGKILL:when={number}") == SIGKILLED
        wrong += [f"killed before {name} {number}: {what}" for what in problems(rig)]
        rig.configure(defines=tuple(traced.wanted))
        wrong += [f"killed before {name} {number}, {what}" for what in heals(rig, "pod-1", True)]
    assert wrong == []


def test_system_call_that_fails(rig: Rig, traced: Traced) -> None:
    """A bpf(2) without memory, here and there: one clear line and the old state, or (where it is tried again) the new.

    The reload replaces maps, so that there is something to take back.
    """
    assert traced.run() == 0
    total = traced.count("bpf")
    assert total > 50
    traced.succeeded()
    wrong, failed = [], 0
    for number in range(1, total + 1, total // 20):
        before = rig.state()
        code = traced.run("-e", f"inject=bpf:error=ENOMEM:when={number}")
        assert "INJECTED" in traced.trace.read_text(), f"there was no call {number}"
        wrong += [f"call {number}: {what}" for what in problems(rig)]
        wrong += [f"call {number}: pin {name}" for name in rig.leftovers()]
        if code == 0:
            traced.succeeded()
            continue
        failed += 1
        assert code == 1
        message = traced.errors.read_text()
        if "Cannot allocate memory" not in message or "\n" in message:
            wrong.append(f"call {number}: {message}")
        wrong += [f"call {number}: {what}" for what in before.differences(rig.state())]
    assert wrong == []
    assert failed >= 10


ENTRIES = 6


def contents(rig: Rig) -> dict[str, int]:
    """Return how many entries the maps have that packets do not change, by the names of their pins."""
    found = {}
    for path in rig.config.globals.iterdir():
        if path.name.startswith(("cilium_lxc", "cilium_ipcache", "cilium_policy_")):
            with open_pin(path) as pinned:
                found[path.name] = len(dict(pinned.items()))
    return found


def test_killed_at_each_entry_of_the_control_plane(templates: Path, killer: Crasher) -> None:
    """A first load makes all maps. What is pinned is whole: maps that all share, and the endpoint's own."""
    with support.rig(templates, pods=1) as rig:
        kills = 0
        for number in itertools.count(1):
            code = killer.run(request(rig, templates, "pod-1", False, entry=number, entries=2))
            found = contents(rig)
            assert set(found.values()) <= {2}, f"killed before entry {number}: {found}"
            if code == 0:
                break
            assert code == SIGKILLED
            kills += 1
            if number % 2:
                rig.entries = 2
                rig.reload("pod-1")
                assert set(contents(rig).values()) == {2}, f"reloaded after a kill before entry {number}"
            for path in list(rig.config.globals.iterdir()):
                path.unlink()
        assert found.keys() == {"cilium_lxc", "cilium_ipcache", "cilium_policy_00101"}
        assert kills >= 2 * len(found)


def test_killed_at_each_entry_that_is_copied(rig: Rig, traced: Traced) -> None:
    """Into a map that replaces another one: the next reload finds all entries, of the old map or the new."""
    for name in ("cilium_ipcache", "cilium_policy_00101"):
        with open_pin(rig.pin(name)) as pinned:
            for number in range(ENTRIES):
                key = struct.pack("=I", number).ljust(pinned.info.key_size, b"\0")
                pinned.update(key, bytes(pinned.value_bytes))
    whole = contents(rig)
    assert traced.run() == 0
    assert contents(rig) == whole
    calls = traced.calls("bpf")
    begin = next(number for number, line in enumerate(calls) if "BPF_MAP_CREATE" in line)
    # Before the first map, programs are loaded to see what the kernel has.
    end = next(number for number, line in enumerate(calls) if number > begin and "BPF_PROG_LOAD" in line)
    updates = [n for n, line in enumerate(calls[begin:end], begin + 1) if "BPF_MAP_UPDATE_ELEM" in line]
    assert len(updates) >= 2 * ENTRIES
    wrong = []
    for number in updates:
        traced.succeeded()
        assert traced.run("-e", f"inject=bpf:signal=SIGKILL:when={number}") == SIGKILLED
        rig.configure(defines=tuple(traced.wanted))
        rig.reload("pod-1", routes=True)
        now = contents(rig)
        if now != whole:
            wrong.append(f"killed before call {number}: {now} instead of {whole}")
    assert wrong == []


@pytest.mark.parametrize("routes", [False, True], ids=["routes-off", "routes-on"])
def test_killed_while_the_policy_array_is_replaced(templates: Path, killer: Crasher, routes: bool) -> None:
    """Other endpoints jump through the old array. No slot of any array in use leads to a program without tail calls.

    After a kill the former size is reloaded, or with endpoint routes the smaller one; each mode is killed at every
    second step, the other at those between. EXHAUSTIVE: all of it in both modes.
    """
    smaller = [("POLICY_PROG_MAP_SIZE", "32768")]
    reloaded = ((), smaller) if EXHAUSTIVE else (smaller if routes else (),)
    with support.rig(templates, pods=2, tunnel=True) as rig:
        subjects = ("host", "overlay", "pod-1", "pod-2")
        steps = rig.plan("pod-1", routes=routes).steps
        begin = [step.name for step in steps].index("open maps")
        wrong = []
        some = range(begin, len(steps)) if EXHAUSTIVE else range(begin + routes, len(steps), 2)
        for number, defines in itertools.product((*some, len(steps)), reloaded):
            rig.configure(defines=())
            for subject in subjects:
                rig.reload(subject, routes=routes)
            last = number == len(steps)
            nth, where = number - last, f"killed before {number} of {len(steps)}, then {defines}"
            doomed = request(rig, templates, "pod-1", routes, nth=nth, after=last, defines=smaller)
            assert killer.run(doomed) == SIGKILLED
            wrong += [f"{where}: {what}" for what in problems(rig)]
            rig.configure(defines=tuple(defines))
            for subject in ("pod-2", "pod-1", "overlay", "host"):
                rig.reload(subject, routes=routes)
                wrong += [f"{where}, after {subject}: {what}" for what in rig.dead_calls()]
            wrong += [f"{where}: pin {path.name}" for path in rig.config.globals.iterdir() if ":" in path.name]
            wrong += [f"{where}: {what}" for what in problems(rig)]
        assert wrong == []


def test_what_the_commit_cannot_remove_is_a_warning(rig: Rig, traced: Traced) -> None:
    """All is new by then. The next reload removes it."""
    assert traced.run() == 0
    total = traced.count("unlink")
    assert total >= 2
    for number in range(1, total + 1):
        traced.succeeded()
        assert traced.run("-e", f"inject=unlink:error=EPERM:when={number}") == 0
        assert "INJECTED" in traced.trace.read_text()
        (warning,) = traced.warnings.read_text().splitlines()
        assert warning.startswith("the reload is done, but ")
        assert "Operation not permitted" in warning
        rig.configure(defines=tuple(traced.wanted))
        rig.reload("pod-1", routes=True)
        assert problems(rig) == []
        assert rig.leftovers() == []
        assert not list(rig.config.state.rglob("*.o.*"))

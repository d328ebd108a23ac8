"""The arrays of policy programs: replaced by one endpoint's reload while the programs of all others jump through it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from datapath.errors import MapTooSmall
from datapath.kernel import progarray
from datapath.kernel.inventory import slots
from datapath.kernel.map import open_pin
from datapath.kernel.pins import RETIRED, Pin, map_id
from datapath.reload import policyarrays
from datapath.reload.outcome import Outcome
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.scenario.gate import Gate
from tests.datapath import support
from tests.datapath.support import Injected, Rig, fails_unchanged

pytestmark = pytest.mark.privileged

NAME = "cilium_call_policy"
SMALLER = (("POLICY_PROG_MAP_SIZE", "32768"),)
SUBJECTS = ("host", "pod-1", "pod-2", "pod-3")
FIREWALL = (("ENABLE_HOST_FIREWALL", "1"),)


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    # With a tunnel as test_crash.py has it: what is compiled for one serves both.
    with support.rig(templates, pods=3, tunnel=True) as made:
        for subject in SUBJECTS:
            made.reload(subject)
        yield made


def filled(rig: Rig) -> dict[str, dict[int, int]]:
    """Return slot -> program id of every array, by the name of its pin."""
    found = {}
    for path in policyarrays.pinned(rig.config.globals)[NAME]:
        with open_pin(path) as array:
            found[path.name] = progarray.programs(array.fd)
    return found


def retired(rig: Rig) -> list[Path]:
    return Pin(rig.pin(NAME)).retired()


def ids(rig: Rig) -> dict[str, int]:
    return {pod.name: pod.endpoint_id for pod in rig.node.pods}


def test_new_array_has_the_programs_of_all_endpoints(rig: Rig) -> None:
    """And the old one gets the reloaded endpoint's new program: it stays pinned, others jump through it."""
    before = filled(rig)[NAME]
    old = map_id(rig.pin(NAME))
    rig.configure(defines=SMALLER)
    outcome = rig.reload("pod-1")
    assert outcome.migrated == (NAME,)
    assert [path.name for path in retired(rig)] == [f"{NAME}{RETIRED}{old}"]
    now = filled(rig)
    changed = ids(rig)["pod-1"]
    for array in now.values():
        assert array[changed] != before[changed]
        assert {slot: program for slot, program in array.items() if slot != changed} == {
            slot: program for slot, program in before.items() if slot != changed
        }
    assert rig.dead_calls() == []
    assert rig.leftovers() == []


def test_slots_are_filled_in_every_array_until_the_last_user_is_reloaded(rig: Rig) -> None:
    rig.reload("pod-1")
    old = map_id(rig.pin(NAME))
    rig.configure(defines=SMALLER)
    rig.reload("pod-1")
    for subject in ("pod-2", "pod-3"):
        assert rig.reload(subject).migrated == ()
        now = filled(rig)
        assert len(now) == 2, subject
        assert len({array[ids(rig)[subject]] for array in now.values()}) == 1
        assert rig.dead_calls() == []
    assert rig.reload("host").migrated == ()
    assert retired(rig) == []
    support.until(lambda: slots(old) is None, "the old array freed")
    assert rig.dead_calls() == []


def test_there_and_back_leaves_one_array(rig: Rig) -> None:
    """Two replacements, with programs that use each of the three arrays."""
    rig.configure(defines=SMALLER)
    rig.reload("pod-1")
    rig.configure(defines=())
    assert rig.reload("pod-2").migrated == (NAME,)
    assert len(retired(rig)) == 2
    assert len({tuple(array.items()) for array in filled(rig).values()}) == 1
    assert rig.dead_calls() == []
    for subject in SUBJECTS:
        rig.reload(subject)
    assert retired(rig) == []
    assert rig.dead_calls() == []


def test_slots_beyond_the_end_of_the_new_array_are_a_warning(rig: Rig) -> None:
    rig.configure(defines=(("POLICY_PROG_MAP_SIZE", "102"),))
    outcome = rig.reload("pod-1")
    assert outcome.warnings == (f"map {NAME}: 2 entries do not fit into 102",)
    assert rig.dead_calls() == []


def test_an_array_without_the_endpoints_own_slot_is_refused(rig: Rig) -> None:
    """The kernel's word for it is `Argument list too long`."""
    rig.configure(defines=(("POLICY_PROG_MAP_SIZE", "102"),))
    message = fails_unchanged(rig, MapTooSmall, "pod-2")
    assert message == f"map {NAME} is too small: 1 entry does not fit into 102"


@pytest.mark.parametrize("step", ["migrate maps", "insert policy", "attach ingress", "commit"])
def test_reload_that_fails_leaves_one_array(rig: Rig, step: str) -> None:
    for subject in SUBJECTS:
        rig.reload(subject)
    before = rig.state()
    rig.configure(defines=SMALLER)
    with pytest.raises(Injected):
        rig.reload("pod-1", observer=Gate(support.inject, before=step))
    assert before.differences(rig.state()) == []


def test_a_slot_filled_by_a_parallel_reload_is_in_every_array(rig: Rig) -> None:
    """The other reload begins between the copy of the slots and the commit, and waits."""
    rig.configure(defines=SMALLER)
    running: list[Future[Outcome]] = []
    with ThreadPoolExecutor(1) as pool:

        def start(step: Step, work: Workspace) -> None:
            running.append(pool.submit(rig.reload, "pod-2"))

        rig.reload("pod-1", observer=Gate(start, after="migrate maps"))
        assert running[0].result(20).migrated == ()
    assert len({tuple(array.items()) for array in filled(rig).values()}) == 1
    assert len(filled(rig)) == 2
    assert rig.dead_calls() == []


def test_an_array_is_kept_for_programs_that_may_come_back(rig: Rig) -> None:
    """The last user of the old array has been replaced by a reload that has not ended, and will be undone."""
    rig.configure(defines=SMALLER)
    for subject in ("pod-1", "pod-2", "host"):
        rig.reload(subject)
    (kept,) = retired(rig)
    reached, go_on = threading.Event(), threading.Event()

    def stop(step: Step, work: Workspace) -> None:
        reached.set()
        assert go_on.wait(20)
        support.inject(step, work)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rig.reload, "pod-3", observer=Gate(stop, before="commit"))
        assert reached.wait(20)
        rig.reload("pod-1")
        assert retired(rig) == [kept]
        go_on.set()
        with pytest.raises(Injected):
            running.result(20)
    assert retired(rig) == [kept]
    assert len({tuple(array.items()) for array in filled(rig).values()}) == 1
    assert rig.dead_calls() == []
    rig.reload("pod-3")
    assert retired(rig) == []


def test_unload_empties_the_slot_in_every_array(rig: Rig) -> None:
    rig.configure(defines=SMALLER)
    rig.reload("pod-1")
    rig.loader.unload(rig.endpoint("pod-2"), forget=lambda: None)
    assert [ids(rig)["pod-2"] in array for array in filled(rig).values()] == [False, False]


def test_an_object_without_policy_program_empties_the_slot(rig: Rig) -> None:
    """The host's, when the host firewall is switched off."""
    rig.configure(defines=FIREWALL)
    rig.reload("host")
    assert 1 in filled(rig)[NAME]
    before = rig.state()
    rig.configure(defines=())
    with pytest.raises(Injected):
        rig.reload("host", observer=Gate(support.inject, before="commit"))
    assert before.differences(rig.state()) == []
    rig.reload("host")
    assert filled(rig)[NAME].keys() == set(ids(rig).values())

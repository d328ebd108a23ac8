"""What the process that spreads scenarios believes of the machines, and what it does not."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler.worksteal import WorkStealingScheduling
from xdist.workermanage import Marker, WorkerController

from lab.machines.place import Place
from lab.machines.spreading import ANOTHER, Hearing, Machines, pytest_cmdline_main
from lab.machines.worker import IDENTITY


def said(target: Path) -> dict[str, Any]:
    """Return the warning of a worker that says that a function of Python's is the class of it."""
    details = {name: None for name in warnings.WarningMessage._WARNING_DETAILS}  # type: ignore[attr-defined]
    named = {"message_module": "os", "message_class_name": "mkdir", "message_args": (str(target),)}
    plain = {"message_str": "be warned", "category_module": "os", "category_class_name": "system"}
    data = {**details, "lineno": 7, "filename": "a.py", **named, **plain}
    return {"warning_message_data": data, "when": "runtest", "nodeid": "a.py::test_b", "location": None}


@pytest.mark.parametrize("kind", [tuple, list])
def test_what_a_machine_says_calls_nothing_here(tmp_path: Path, kind: type) -> None:
    heard: list[Any] = []
    controller = WorkerController.__new__(WorkerController)
    controller.putevent, controller.log = heard.append, Producer("worker", enabled=False)
    event = kind(("warning_recorded", said(tmp_path / "made")))
    Hearing(controller, {}).hear(event)
    ((name, content),) = heard
    assert (name, str(content["warning_message"].message)) == ("warning_recorded", "be warned")
    assert content["warning_message"].category is UserWarning
    assert not (tmp_path / "made").exists()
    # This is what it would be without us.
    controller.process_from_remote(event)
    assert (tmp_path / "made").is_dir()


NOTHING = {"collectonly": False, "usepdb": False, "trace": False, "looponfail": False, "dist": "no"}


@pytest.mark.parametrize("option", [*NOTHING, "numprocesses", "tx", "px"])
def test_options_that_would_run_something_here_are_refused(pytestconfig: pytest.Config, option: str) -> None:
    given = dict.fromkeys(vars(pytestconfig.option)) | NOTHING
    pytest_cmdline_main(SimpleNamespace(option=Namespace(**given)))  # type: ignore[arg-type]
    assert option in given
    with pytest.raises(pytest.UsageError, match="pytest takes no options that debug, only collect, or say where"):
        pytest_cmdline_main(SimpleNamespace(option=Namespace(**given | {option: "given"})))  # type: ignore[arg-type]


class Controller:
    """xdist's side of a worker, which notes what comes through."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.sent_home = False

    def process_from_remote(self, event: object) -> None:
        self.heard.append(event if event is Marker.END else event[0])  # type: ignore[index]

    def notify_inproc(self, name: str, *, node: object, error: str) -> None:
        assert node is self
        self.heard.append((name, error))

    def shutdown(self) -> None:
        self.sent_home = True


@pytest.mark.parametrize(
    ("told", "heard"),
    [
        ([(IDENTITY, {"identity": {"boot": "1"}})], ["workerready", "collectionfinish", Marker.END]),
        ([(IDENTITY, {"identity": {"boot": "2"}})], [("errordown", ANOTHER)]),
        ([(IDENTITY, {})], [("errordown", ANOTHER)]),
        ([], [("errordown", ANOTHER)]),
    ],
)
def test_a_worker_that_is_not_where_it_should_be_is_sent_home_and_not_heard(
    told: list[object], heard: list[object]
) -> None:
    controller = Controller()
    hearing = Hearing(controller, {"boot": "1"})
    for event in [*told, ("workerready", {}), ("collectionfinish", {}), Marker.END]:
        hearing.hear(event)
    assert controller.heard == heard
    assert controller.sent_home == (heard[0] != "workerready")


@pytest.mark.parametrize(("collection", "waited_for"), [(None, 1), (["a.py::test_b"], 0)])
def test_a_worker_that_dies_while_it_collects_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch, collection: list[str] | None, waited_for: int
) -> None:
    """The scenarios of the only worker would be over before the next one is up, and nothing would have run."""
    machines = Machines.__new__(Machines)
    node = WorkerController.__new__(WorkerController)
    node.gateway = SimpleNamespace(spec=SimpleNamespace(machine="a"))
    machines._places, machines._lost, machines._restarts = {"a": Place("a", "", 1, {})}, {}, Counter()
    machines._was_ready, machines.sched = {node}, SimpleNamespace(numnodes=0, collection=collection)
    another = WorkerController.__new__(WorkerController)
    monkeypatch.setattr(machines, "_start_on", lambda label: another)
    assert machines._replace(node, "Not properly terminated") is another
    assert machines.sched.numnodes == waited_for


class FakeWorker:
    """A worker as the scheduler knows it."""

    def __init__(self, machine: str) -> None:
        self.gateway = SimpleNamespace(spec=SimpleNamespace(machine=machine), id=machine)
        self.shutting_down = False
        self.given: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.mark.parametrize("came_up", [False, True])
@pytest.mark.parametrize("dies_last", [False, True])
def test_scenarios_are_spread_though_a_worker_dies_before_it_has_collected(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, came_up: bool, dies_last: bool
) -> None:
    """Whether the others have collected before or after it dies: one order left all scenarios out, without a word."""
    machines = Machines.__new__(Machines)
    workers = [FakeWorker(name) for name in "abc"]
    *others, dead = workers
    machines.config, machines._reschedule, machines._restarts = pytestconfig, False, Counter()
    machines._places, machines._lost = {name: Place(name, "", 1, {}) for name in "abc"}, {}
    machines._undecided = {}
    machines._active_nodes, machines._was_ready = set(workers), set(workers if came_up else others)
    monkeypatch.setattr(machines, "_lose", lambda label, reason: machines._lost.update({label: reason}))
    monkeypatch.setattr(machines, "_start_on", lambda label: machines._lose(label, "it cannot be reached any more"))
    monkeypatch.setattr(pytestconfig.option, "tx", ["popen"] * len(workers))
    sched = machines.sched = WorkStealingScheduling(pytestconfig)

    def collect() -> None:
        for worker in others:
            sched.add_node_collection(worker, [f"test_{number}" for number in range(6)])
            if sched.collection_is_completed:
                sched.schedule()

    for worker in workers if came_up else others:
        sched.add_node(worker)
    if dies_last:
        collect()
    machines.worker_errordown(dead, "Not properly terminated")
    if not dies_last:
        collect()
    assert sorted(index for worker in others for index in worker.given) == list(range(6))
    assert not any(worker.shutting_down for worker in others)
    assert not sched.tests_finished
    assert list(machines._lost) == ["c"]


def test_a_scenario_that_ends_machines_does_not_get_all_of_them() -> None:
    machines = Machines.__new__(Machines)
    machines._places = {name: Place(name, "", 1, {}) for name in "abc"}
    machines._reschedule, machines._ran_again, machines._lost = True, set(), {"a": "it cannot be reached any more"}
    assert not machines._runs_again("test_a", "b")
    assert machines._runs_again("test_a", "a")
    assert machines._runs_again("test_other", "a")
    machines._lost["b"] = "it cannot be reached any more"
    assert not machines._runs_again("test_a", "b")
    machines._lost["c"] = "it cannot be reached any more"
    assert not machines._runs_again("test_last", "c")

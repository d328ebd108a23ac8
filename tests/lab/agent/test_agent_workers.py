"""Reloads in forked workers, on a real node: what an agent keeps when one of them is killed, fails or is cancelled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from datapath.errors import Cancelled, ReloadlabError
from datapath.reload.outcome import FailedReload, Outcome
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.agent.agent import Agent, Failure
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario.gate import Gate
from lab.system.cache import CACHE_VARIABLE
from lab.system.forkpool import WorkerDied
from lab.watch.invariants import check_unchanged
from lab.watch.snapshot import take
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

PODS = 4


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that has a line for every compilation: the process that made it."""
    return tmp_path_factory.mktemp("compiled") / "log"


@pytest.fixture(scope="module")
def loaded(compiled: Path) -> Iterator[Agent]:
    """Return an agent that finds nothing compiled."""

    def note(kind: object, name: str) -> None:
        with compiled.open("a") as log:
            print(os.getpid(), kind, file=log)

    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(CACHE_VARIABLE, "")
        node = stack.enter_context(Node(NodeSpec(unique_name("workers")[:20], pods=PODS)))
        agent = stack.enter_context(Agent(node, on_compile=note))
        agent.start(workers=2)
        yield agent


@pytest.fixture
def agent(loaded: Agent) -> Iterator[Agent]:
    before = workers_descriptors()
    yield loaded
    loaded.change = None
    assert workers_descriptors() == before


def workers_descriptors() -> list[str]:
    """Return what workers need; descriptors of maps and sockets are kept by the loader."""
    links = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink() and entry.exists())
    return sorted(link for link in links if "pidfd" in link or "memfd" in link or "deleted" in link or "pipe" in link)


@dataclass(frozen=True)
class Do(Step):
    """Does something in the middle of a reload."""

    do: Callable[[Workspace], object]
    name = "do"

    def describe(self) -> str:
        return "do something"

    def apply(self, work: Workspace) -> None:
        self.do(work)

    def undo(self, work: Workspace) -> None:
        return


def before_commit(subject: str, do: Callable[[Workspace], object]) -> Callable[[Plan], Plan]:
    """Return a change of plans: `do` is done when the new programs are attached, and the old ones not forgotten."""

    def change(plan: Plan) -> Plan:
        at = [step.name for step in plan.steps].index("commit")
        steps = (*plan.steps[:at], Do(subject, do), *plan.steps[at:])
        return replace(plan, steps=steps) if plan.subject == subject else plan

    return change


def pods(agent: Agent) -> list[str]:
    return [pod.name for pod in agent.node.pods]


def outcomes(results: list[Outcome | Failure]) -> list[Outcome]:
    return [result for result in results if isinstance(result, Outcome)]


def kill(_: Workspace) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: Workspace) -> None:
    raise ReloadlabError("injected")


def test_workers_reload_each_once_in_processes_of_their_own(agent: Agent) -> None:
    begun = agent.next_generation()
    results = outcomes(agent.reload_many(pods(agent), workers=3))
    assert [result.subject for result in results] == pods(agent)
    assert sorted(result.generation for result in results) == list(range(begun + 1, begun + 1 + PODS))
    tids = {span.work.tid for result in results for span in result.spans}
    assert os.getpid() not in tids
    assert not any(result.warnings for result in results)


def test_one_worker_is_this_process(agent: Agent) -> None:
    results = outcomes(agent.reload_many(pods(agent)[:1], workers=4))
    assert {span.work.tid for span in results[0].spans} == {threading.get_native_id()}


def test_what_workers_need_is_compiled_once_and_not_by_them(agent: Agent, compiled: Path) -> None:
    agent.reload_many(pods(agent), workers=2)
    lines = [line.split() for line in compiled.read_text().splitlines()]
    assert {pid for pid, _ in lines} == {str(os.getpid())}
    assert sorted(kind for _, kind in lines) == ["Kind.HOST", "Kind.LXC"]


def test_no_verifier_thread_lives_when_workers_are_forked(agent: Agent) -> None:
    agent.reload("pod-1")
    agent.reload_many(pods(agent), workers=2)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("verifier")]


def test_on_worker_is_called_in_each(agent: Agent) -> None:
    read, write = os.pipe()
    agent.reload_many(pods(agent), workers=2, on_worker=lambda pid: os.write(write, b"%d %d\n" % (pid, os.getpid())))
    os.close(write)
    with open(read) as said:
        pids = [line.split() for line in said]
    assert len(pids) == 2
    assert all(told == own != str(os.getpid()) for told, own in pids)


def test_a_killed_worker_fails_its_pod_only_and_the_next_reload_repairs_it(agent: Agent) -> None:
    agent.change = before_commit("pod-2", kill)
    results = dict(zip(pods(agent), agent.reload_many(pods(agent), workers=2), strict=True))
    failure = results.pop("pod-2")
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, WorkerDied)
    assert len(outcomes(list(results.values()))) == PODS - 1
    agent.change = None
    agent.reload("pod-2")
    assert not list(agent.config.globals.glob("*:pending"))


def test_a_failed_reload_comes_back_as_its_error(agent: Agent) -> None:
    before = take(agent.node)
    agent.change = before_commit("pod-1", fail)
    (failure, other) = agent.reload_many(["pod-1", "pod-1"], workers=2)
    for result in (failure, other):
        assert isinstance(result, Failure)
        assert str(result.error) == "injected"
    assert check_unchanged(before, take(agent.node)) == []


def test_a_failed_reload_of_a_worker_tells_its_steps(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what looks on at reloads in this process hears nothing of those of others."""
    heard: list[FailedReload] = []
    monkeypatch.setattr(agent, "on_failure", heard.append)
    monkeypatch.setattr(agent, "on_reload", lambda plan: pytest.fail("called in a worker"))
    agent.change = before_commit("pod-1", fail)
    results = agent.reload_many(["pod-1", "pod-2"], workers=2)
    assert [type(result) for result in results] == [Failure, Outcome]
    (failed,) = heard
    assert (failed.subject, failed.error) == ("pod-1", "injected")
    assert [span.step for span in failed.spans][-1] == "do"
    assert failed.rollback is not None
    assert failed.spans[-1].work.tid != os.getpid()


def test_on_reload_gives_an_observer_beside_the_callers(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    own = Gate(lambda *_: seen.append("own"), before="commit")
    monkeypatch.setattr(agent, "on_reload", lambda plan: own if plan.subject == "pod-1" else None)
    agent.reload("pod-1", observer=Gate(lambda *_: seen.append("caller's"), before="commit"))
    agent.reload("pod-1")
    agent.reload("pod-2")
    assert seen == ["own", "caller's", "own"]


def test_a_cancelled_reload_is_undone_by_its_worker(agent: Agent) -> None:
    cancel = threading.Event()
    read, write = os.pipe()

    def hang(work: Workspace) -> None:
        os.write(write, b"x")
        deadline = time.monotonic() + 20
        while not work.cancel.wait(1) and time.monotonic() < deadline:
            pass

    def canceller() -> None:
        os.read(read, 1)
        cancel.set()

    before = take(agent.node)
    agent.change = before_commit("pod-3", hang)
    thread = threading.Thread(target=canceller)
    thread.start()
    results = agent.reload_many(["pod-3"] * 3, workers=2, cancel=cancel)
    thread.join()
    os.close(read)
    os.close(write)
    assert [type(result.error) for result in results if isinstance(result, Failure)] == [Cancelled] * 3
    assert check_unchanged(before, take(agent.node)) == []

"""strace's injection confirms the gates: the same call that fails, or is where the process dies, ends the same way."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from datapath.errors import ReloadlabError
from lab.agent.reloads import do_in_worker
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Fail, Kill
from lab.node.topology import NodeSpec
from lab.proof.action import Action, do_gated
from lab.proof.actions import reloads
from lab.scenario.scenario import Scenario
from lab.system.forkpool import WorkerDied
from lab.watch.snapshot import take

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

_VOLATILE = re.compile(r"\.[a-z0-9_]{8}\b|\d+")
"""What differs from one reload to the next: temporary names, generations."""


@dataclass(frozen=True)
class Injection:
    """The `nth` call, from 1, of a system call by the thread that reloads fails with EIO, or is where it is killed."""

    syscall: str
    nth: int
    kill: bool = False

    @property
    def option(self) -> str:
        """As strace's option -e takes it."""
        return f"inject={self.syscall}:{'signal=SIGKILL' if self.kill else 'error=EIO'}:when={self.nth}"


def ended(do: Callable[[], object], scenario: Scenario) -> tuple[str, list[str]]:
    """Return how a reload ended, and the names of the pins that it has left."""
    try:
        do()
        how = "succeeded"
    except WorkerDied as error:
        how = error.how
    except ReloadlabError as error:
        how = _VOLATILE.sub("*", str(error))
    left = sorted(take(scenario.node).pins)
    scenario.agent.reload("pod-1")
    return how, left


def by_gates(scenario: Scenario, action: Action, injection: Injection) -> None:
    seen = 0

    def decide(call: Call) -> Answer:
        nonlocal seen
        seen += call.syscall == injection.syscall
        if call.syscall != injection.syscall or seen != injection.nth:
            return None
        return Kill() if injection.kill else Fail(errno.EIO)

    do_gated(scenario, action, decide)


def by_strace(scenario: Scenario, action: Action, injection: Injection) -> None:
    with traced(injection) as enter:
        do_in_worker(scenario.agent, lambda cancel: action.do(scenario, cancel), on_worker=enter)


@contextmanager
def traced(injection: Injection) -> Iterator[Callable[[], None]]:
    """Yield what a forked process calls to be put under strace; it is stopped until it is."""
    reader, writer = os.pipe()

    def enter() -> None:
        os.write(writer, f"{os.getpid()}\n".encode())
        os.kill(os.getpid(), signal.SIGSTOP)

    def attach() -> None:
        pid = os.read(reader, 32).decode().strip()
        trace = ["-o", os.devnull, "-e", f"trace={injection.syscall}", "-e", injection.option]
        with subprocess.Popen(["strace", "-p", pid, *trace], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "attached" in process.stderr.readline()
            os.kill(int(pid), signal.SIGCONT)
            process.wait(60)

    thread = threading.Thread(target=attach)
    thread.start()
    try:
        yield enter
    finally:
        thread.join()
        os.close(reader)
        os.close(writer)


def test_the_same_as_under_strace() -> None:
    with Scenario(NodeSpec("strace", pods=1), bursts="none", rate=0) as scenario:
        (action,) = reloads(scenario.node.spec, ["pod-1"], [])
        calls: list[Call] = []
        do_gated(scenario, action, calls.append)
        count = {name: sum(call.syscall == name for call in calls) for name in ("rename", "link", "unlink")}
        assert min(count.values()) > 0
        sample = [Injection(name, nth) for name in count for nth in sorted({1, count[name]})]
        sample += [Injection("rename", 1, kill=True), Injection("link", 1, kill=True)]
        for injection in sample:
            gates = ended(lambda i=injection: by_gates(scenario, action, i), scenario)  # type: ignore[misc]
            strace = ended(lambda i=injection: by_strace(scenario, action, i), scenario)  # type: ignore[misc]
            assert gates == strace, injection
            assert gates[0] != "succeeded" or injection.syscall == "unlink"
        scenario.abandon()

"""What tests of labs share: names that nobody else uses, `ip -j` inside a namespace, a process to be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lab.agent.agent import Agent
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.process import Process, fork
from lab.system.signals import SIGNALS
from lab.system.tools import find, run
from tests.netns import nsenter

UP = (
    "import sys; from lab.node.node import Node; from lab.node.topology import NodeSpec; "
    "Node.up(NodeSpec(sys.argv[1], pods=int(sys.argv[2])))"
)
ROOT = Path(__file__).resolve().parents[2]

NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
)
"""What runs a command as user 65534, who still may read a checkout in a directory that only root may enter."""


def unique_name(prefix: str = "test") -> str:
    """Return a lab name that nobody else uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


@contextmanager
def removed(name: str) -> Iterator[str]:
    """Give the name of a lab that is removed at the end if it is there, whatever became of it."""
    try:
        yield name
    finally:
        if registry.lab_root(name).exists():
            registry.remove(name, force=True)


@contextmanager
def loaded_node(prefix: str, templates: Path, *, policies: Sequence[object] = (), **spec: Any) -> Iterator[Node]:
    """Make a node with its programs, and no agent; `spec` are fields of NodeSpec."""
    with Node(NodeSpec(unique_name(prefix), **spec)) as node:
        with Agent(node, templates=templates) as agent:
            agent.start()
            if policies:
                agent.apply_policies(list(policies))
        yield node


def ip(netns: Path, *words: str) -> list[dict[str, Any]]:
    """Return the answer of `ip -j -d` inside a namespace, without the empty objects that `ip` leaves in its lists."""
    answer = run(nsenter(netns, "ip", "-j", "-d", *words))
    return [item for item in json.loads(answer or "[]") if item]


def sysctl(netns: Path, name: str) -> str:
    """Return a setting inside a namespace; `name` is a path under /proc/sys/net."""
    return run(nsenter(netns, "cat", f"/proc/sys/net/{name}")).strip()


def python(code: str, *argv: str) -> subprocess.Popen[str]:
    """Start a Python process of ours."""
    return start([sys.executable, "-c", code, *argv])


def cli(*argv: str) -> list[str]:
    """Return the command line of a `reloadlab` command."""
    return [sys.executable, "-m", "lab.cli.main", *argv]


def start(argv: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process in the repository, its output captured."""
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def mounts_of(name: str) -> list[str]:
    """Return the mounts of this mount namespace that belong to a lab."""
    root = f"{registry.lab_root(name)}"
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [target for target in targets if target == root or target.startswith(f"{root}/")]


def receives(sock: socket.socket, *, within: float = 2.0) -> bool:
    """Tell whether something arrives, within so many seconds."""
    sock.settimeout(within)
    try:
        return bool(sock.recv(64))
    except TimeoutError:
        return False


def killed_at(calls: str, nth: int, work: Callable[[], object]) -> bool:
    """Do work in a forked process that is killed at its nth system call of these; False if it has fewer."""
    return _signalled_at(signal.SIGKILL, calls, nth, work)


def interrupted_at(calls: str, nth: int, work: Callable[[], object]) -> bool:
    """Do as `killed_at` with Ctrl-C instead."""
    return _signalled_at(signal.SIGINT, calls, nth, work)


def _signalled_at(what: signal.Signals, calls: str, nth: int, work: Callable[[], object]) -> bool:
    inject = [word for call in calls.split(",") for word in ("-e", f"inject={call}:signal={what.name}:when={nth}")]
    strace = [str(find("strace")), "-f", "-o", os.devnull, "-e", f"trace={calls}", *inject]
    children: list[Process] = []
    with tempfile.TemporaryFile() as errors, ExitStack() as stack:
        fork(lambda: _be_child(work, errors.fileno()), children.append)
        (child,) = children
        stack.callback(child.close)
        stack.callback(child.wait, 60)
        os.waitid(os.P_PIDFD, child.pidfd, os.WSTOPPED)
        with subprocess.Popen([*strace, "-p", str(child.pid)], stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            child.signal(signal.SIGCONT if "attached" in said else signal.SIGKILL)
            assert "attached" in said, said
            code = child.wait(60)
            tracer.communicate(timeout=60)
        errors.seek(0)
        assert code in (0, -what), errors.read().decode()
    return code == -what


def _be_child(work: Callable[[], object], errors: int) -> NoReturn:
    """Stop until strace has this process, work, and end as Python does: by the signal that interrupted it."""
    code = 1
    try:
        os.dup2(errors, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        code = 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)

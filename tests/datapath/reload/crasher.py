"""Reloads in processes of their own, which may be killed at a step: `python -m tests.datapath.crasher`.

Requests are read line by line, each carried out in a forked process: that costs no start of an interpreter.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datapath.build.compile import probe_compiler
from datapath.errors import ReloadlabError
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.node.node import Node
from lab.scenario.gate import Gate
from tests.datapath.support import Rig

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Request:
    """One reload; killed before or after its n-th step, from 0, if `nth` is given.

    With `entry` it is killed before the control plane writes its n-th entry; it writes `entries` into each new map.
    With `strace`, options of that tool, it runs under it; `output` gets the trace. An error's line goes to `errors`,
    the warnings of a reload that has ended go to `warnings`.
    """

    node: str
    templates: str
    subject: str
    routes: bool = False
    nth: int | None = None
    after: bool = False
    entry: int = 0
    entries: int = 1
    defines: list[tuple[str, str]] = field(default_factory=list)
    strace: list[str] = field(default_factory=list)
    output: str = ""
    errors: str = os.devnull
    warnings: str = os.devnull


class Crasher:
    """The serving process, seen from the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, request: Request) -> int:
        """Carry out a request; return the exit code as subprocess has it (-9: killed)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the crasher died"
        return int(answer)


@contextmanager
def crasher() -> Iterator[Crasher]:
    """Run the serving process for the time of a block."""
    argv = [sys.executable, "-m", "tests.datapath.reload.crasher"]
    # A compiled module would be renamed into place: one more system call than the reload makes.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Crasher(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def _reload(request: Request) -> None:
    def die(step: Step, work: Workspace) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    gate = None
    if request.nth is not None:
        step = {"after" if request.after else "before": "*"}
        gate = Gate(die, before=step.get("before"), after=step.get("after"), nth=request.nth + 1)
    with Rig(Node.open(request.node), Path(request.templates)) as rig:
        rig.configure(defines=tuple((name, value) for name, value in request.defines))
        rig.entries = request.entries
        left = itertools.count(request.entry - 1, -1)
        rig.on_entry = lambda: os.kill(os.getpid(), signal.SIGKILL) if next(left) == 0 else None
        outcome = rig.reload(request.subject, routes=request.routes, observer=gate)
    Path(request.warnings).write_text("\n".join(outcome.warnings))


def _serve() -> None:
    probe_compiler()  # asked here, and not by each forked process
    for line in sys.stdin:
        request = Request(**json.loads(line))
        child = os.fork()
        if child == 0:
            code = 2
            try:
                if request.strace:
                    os.kill(os.getpid(), signal.SIGSTOP)  # until strace has it
                code = _once(request)
            finally:
                os._exit(code)  # whatever happened: two processes may not read the requests
        with ExitStack() as stack:
            if request.strace:
                stack.enter_context(_traced(child, request))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


@contextmanager
def _traced(child: int, request: Request) -> Iterator[None]:
    """Put a stopped process under strace and let it go on."""
    os.waitpid(child, os.WUNTRACED)
    argv = ["strace", "-p", str(child), "-o", request.output, *request.strace]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        words = process.stderr.readline()
        if "attached" not in words:
            os.kill(child, signal.SIGKILL)
        os.kill(child, signal.SIGCONT)
        yield
        process.wait(10)
    assert "attached" in words, words


def _once(request: Request) -> int:
    try:
        _reload(request)
    except ReloadlabError as error:
        Path(request.errors).write_text(str(error))
        return 1
    return 0


if __name__ == "__main__":
    _serve()

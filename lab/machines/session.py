"""The connection to a machine that lasts as long as a run: it is made ready at the beginning and cleared at the end."""

from __future__ import annotations

import base64
import binascii
import json
import os
import selectors
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from datapath.base.statefile import WrongContent, typed
from datapath.errors import ReloadlabError
from lab.machines import remote
from lab.machines.identity import Identity
from lab.machines.ssh import NO_PYTHON, NO_SUDO, MachineUnfit, Route, reason_of
from lab.machines.target import MOST_WORKERS, Target
from lab.machines.tree import Tree
from lab.results.machine import Machine
from lab.system.pace import LARGEST
from lab.system.plain import plain

BASE = "/var/cache/reloadlab/machines"
"""The directory of root's there; lab.machines.remote says what is in it."""

BEAT = 20.0
"""Seconds between two words that say that we are still here."""

FIRST_WORD = 120.0
"""Seconds in which a machine has to say something after the login: else there is no shell that takes commands."""

PREPARATION = 3600.0
"""Seconds in which a machine has to be ready: an emulated one was seen to take 20 minutes for its set-up."""

FAREWELL = 90.0
"""Seconds in which a machine has to say that nothing is left there."""

LONGEST = 256 << 20
"""Bytes of what a machine says at once, at most; a file of packets is one message."""

_ENDING = 10.0
"""Seconds that ssh has to end after the machine has said its last word."""

_SHELL = """command -v python3 >/dev/null || exit {no_python}
[ "$(id -u)" -ne 0 ] || exec python3 -I -c "$0"
command -v sudo >/dev/null || exit {no_sudo}
exec sudo -n python3 -I -c "$0"
"""


class MachinesUnfit(ReloadlabError):
    """Machines that cannot take part, a line for each."""

    def __init__(self, unfit: Sequence[MachineUnfit]) -> None:
        super().__init__("\n".join(str(each) for each in unfit))
        self.unfit = tuple(unfit)


@dataclass(frozen=True, slots=True)
class Order:
    """What a machine is asked for: the environment, the trees (that of the project first), and the run's `token`.

    `arguments` are those of pytest there, `failed` the scenarios that failed last, by name.
    """

    environment: str
    trees: tuple[Tree, ...]
    token: str
    arguments: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    base: str = BASE

    @property
    def directory(self) -> str:
        """The directory of the run there."""
        return f"{self.base}/runs/{self.token}"

    @property
    def work(self) -> str:
        """The current directory of the workers there."""
        return f"{self.directory}/work"

    @property
    def packets(self) -> str:
        """The directory there for the packets around findings."""
        return f"{self.directory}/packets"

    @property
    def python(self) -> str:
        """The interpreter there."""
        return f"{self.base}/environments/{self.environment}/.venv/bin/python"

    def place(self, tree: Tree) -> str:
        """Return the directory of a tree there."""
        return f"{self.base}/trees/{tree.key}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the processes of the run there."""
        return {
            "PATH": remote.PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": self.place(self.trees[0]),
            "PYTHONSAFEPATH": "1",
            "RELOADLAB_RUN": remote.labs_of(self.token),
            "TMPDIR": f"{self.directory}/tmp",
        }

    def to_json(self) -> dict[str, Any]:
        cache = json.dumps(dict.fromkeys(self.failed, True))
        return {
            "base": self.base,
            "token": self.token,
            "environment": self.environment,
            "trees": [tree.key for tree in self.trees],
            "variables": self.variables | {"TMPDIR": "/tmp"},
            "files": {
                "python": f"{self.python}\n{self.place(self.trees[0])}\n",
                "arguments": "".join(f"{word}\n" for word in self.arguments),
                "cache/v/cache/lastfailed": cache,
            },
        }


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the doctor has found of one requirement: its state in a word, and its line."""

    name: str
    state: str
    line: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A machine that is ready: what its examination has found (lab.machines.examine), and whether root is by sudo."""

    identity: Identity
    cpus: int
    machine: Machine
    slowness: float
    requirements: tuple[Requirement, ...]
    sudo: bool

    def names(self, *states: str) -> list[str]:
        """Return the names of the requirements in one of these states."""
        return [each.name for each in self.requirements if each.state in states]

    def lines(self, *states: str) -> list[str]:
        """Return the doctor's lines of the requirements in one of these states."""
        return [each.line for each in self.requirements if each.state in states]


class Session:
    """One machine for the time of a run; see `sessions`. `ready` is set by `prepare`."""

    def __init__(self, target: Target, route: Route, order: Order, errors: Path) -> None:
        self.target = target
        self.route = route
        self.order = order
        self.ready: Ready | None = None
        self.failure: MachineUnfit | None = None
        self._errors = errors
        self._rest = bytearray()
        self._heard = False
        self._doing = ""
        self._begun = self._spoke = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def label(self) -> str:
        return self.target.label

    @property
    def workers(self) -> int:
        """How many scenarios it runs at a time."""
        assert self.ready is not None
        return self.target.workers or min(max(self.ready.cpus, 1), MOST_WORKERS)

    @property
    def slowness(self) -> float:
        """By how much it is slower than an ordinary machine; what it says may be no such factor."""
        assert self.ready is not None
        return min(max(self.ready.slowness, 1.0), LARGEST)

    def start(self) -> None:
        """Connect, and send what is to be done there."""
        source = Path(remote.__file__).read_bytes()
        shell = _SHELL.format(no_python=NO_PYTHON, no_sudo=NO_SUDO)
        program = f"import sys; exec(sys.stdin.buffer.read({len(source)}))"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self.route.argv("/bin/sh", "-c", shell, program),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # It does not hear Ctrl-C: it is ended last, when it has told that nothing is left.
                start_new_session=True,
            )
        self._send(source + json.dumps(self.order.to_json()).encode() + b"\n")

    @property
    def descriptor(self) -> int:
        """Readable when the machine has said something."""
        return self._output.fileno()

    def beat(self) -> None:
        """Say that we are still here, at times; nothing happens if the machine is gone."""
        if time.monotonic() - self._spoke >= BEAT:
            self._send(b"\n")

    def hear(self) -> Iterator[dict[str, Any]]:
        """Yield what the machine has said by now; `failure` is set when it will say nothing more."""
        data = os.read(self.descriptor, 1 << 16)
        self._rest += data
        if b"\n" in data:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                try:
                    message = _printable(json.loads(line))
                except (ValueError, RecursionError):
                    # A login that prints something: it is no message.
                    continue
                if isinstance(message, dict):
                    self._heard = True
                    yield message
        if self.failure is None and len(self._rest) > LONGEST:
            self.failure = MachineUnfit(self.label, f"it says more than {LONGEST >> 20} MiB without an end of line")
        if self.failure is None and not data:
            self.failure = MachineUnfit(self.label, self._why())

    def answer(self, message: Mapping[str, Any]) -> str:
        """Do what a message asks for, and return what is to be told of it."""
        if "need" in message:
            for tree in self.order.trees:
                if tree.key == message["need"]:
                    packed = tree.packed()
                    self._send(f"{len(packed)}\n".encode() + packed)
                    return f"copying {tree.root} ({len(tree.files)} files)"
            self.failure = MachineUnfit(self.label, "it asks for files that do not go along")
        if "failed" in message:
            self.failure = MachineUnfit(self.label, str(message["failed"]))
        if "ready" in message:
            try:
                self.ready = typed(Ready, message["ready"])
            except WrongContent as error:
                self.failure = MachineUnfit(self.label, f"it does not say what it is: {error}")
        self._doing = str(message.get("say", ""))
        return self._doing

    def progress(self) -> Iterator[str]:
        """Do what the machine asks for by now; yield what is to be told of it."""
        yield from filter(None, map(self.answer, self.hear()))

    def give_up_if_late(self) -> None:
        """Set `failure` if it has said nothing for too long, or is not ready after even longer."""
        if self.failure is not None or self.ready is not None:
            return
        passed = time.monotonic() - self._begun
        if not self._heard and passed > FIRST_WORD:
            reason = f"it is there, but runs nothing: see whether this ends: ssh {self.target.name} true"
            self.failure = MachineUnfit(self.label, reason)
        elif passed > PREPARATION:
            doing = f"; it said last: {self._doing}" if self._doing else ""
            reason = f"it is not ready after {PREPARATION / 60:g} minutes{doing}; see what runs there"
            self.failure = MachineUnfit(self.label, reason)

    def hang_up(self) -> None:
        """Tell the machine that the run is over; nothing happens if it is gone."""
        if self._process is not None:
            assert self._process.stdin is not None
            with _gone():
                self._process.stdin.close()

    def finish(self, packets: Callable[[str, bytes], object]) -> str:
        """End the run there, and return what is not as it should be, or nothing; `packets` gets each file of them."""
        self.hang_up()
        if self.ready is None:
            return ""
        ended, wrong = False, []
        deadline = time.monotonic() + FAREWELL * self.slowness
        with selectors.DefaultSelector() as selector:
            selector.register(self.descriptor, selectors.EVENT_READ)
            while not ended and self.failure is None and (left := deadline - time.monotonic()) > 0:
                if not selector.select(left):
                    continue
                for message in self.hear():
                    if "packets" in message:
                        try:
                            packets(*_file(message))
                        except WrongContent as error:
                            wrong.append(str(error))
                    if "ended" in message:
                        ended = True
                        wrong.append(str(message["ended"]))
        if not ended:
            wrong.append("it did not say that nothing is left there; the next run removes what is")
        return "; ".join(filter(None, wrong))

    def close(self) -> None:
        """End the connection, whatever became of it."""
        process = self._process
        if process is not None:
            self.hang_up()
            self._output.close()
            process.kill()
            process.wait()

    def _send(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._spoke = time.monotonic()
        # What has gone wrong is told by the end of what it says.
        with _gone():
            self._process.stdin.write(data)
            self._process.stdin.flush()

    @property
    def _output(self) -> IO[bytes]:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    def _why(self) -> str:
        assert self._process is not None
        self.hang_up()
        try:
            code = self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            # It goes on without a way to say so.
            self._process.kill()
            code = self._process.wait()
        if self.ready is not None:
            return "the connection ended"
        return str(_printable(reason_of(code, self._errors.read_text(errors="replace"), self.target.name)))

    def spec(self) -> str:
        """Return execnet's description of a worker there; `machine` is a key of our own."""
        plugins = "-preloadlab.short_names -plab.machines.worker -pno:hypothesispytest"
        assert self.ready is not None
        variables = self.order.variables | {
            "PYTEST_ADDOPTS": f"{plugins} @{self.order.directory}/arguments",
            "RELOADLAB_SLOWNESS": f"{self.slowness:g}",
        }
        become_root = "sudo -n " if self.ready.sudo else ""
        python = become_root + shlex.join(["env", *(f"{n}={v}" for n, v in variables.items()), self.order.python])
        parts = {
            "ssh": " ".join(self.route.options(self.slowness)),
            "machine": self.label,
            "python": python,
            "chdir": self.order.work,
        }
        if self.route.config is not None:
            parts["ssh_config"] = str(self.route.config)
        return "//".join(f"{key}={value}" for key, value in parts.items())


@contextmanager
def sessions(
    wanted: Sequence[tuple[Target, Route, Order]],
    directory: Path,
    *,
    warn: Callable[[str], object],
    packets: Callable[[str, str, bytes], object],
) -> Iterator[list[Session]]:
    """Yield a session for each machine, connected; at the end nothing of the run is left on any of them.

    `warn` gets a line for what is, `packets` the machine, name and content of each file of packets. `directory` is for
    what ssh says.
    """
    with ExitStack() as stack:
        made = []
        for number, (target, route, order) in enumerate(wanted):
            session = Session(target, route, order, directory / f"ssh-{number}.errors")
            stack.callback(session.close)
            stack.callback(_finish, session, warn, packets)
            session.start()
            made.append(session)
        # First of all at the end: while one is waited for, the others take down their labs as well.
        for session in made:
            stack.callback(session.hang_up)
        yield made


def _finish(session: Session, warn: Callable[[str], object], packets: Callable[[str, str, bytes], object]) -> None:
    wrong = session.finish(lambda name, content: packets(session.label, name, content))
    if wrong:
        warn(f"{session.label}: {wrong}")


def prepare(found: Sequence[Session], say: Callable[[str, str], object]) -> None:
    """Wait until all machines are ready; `say` gets a machine and what it does, or why it cannot take part.

    MachinesUnfit unless all are ready.
    """
    with selectors.DefaultSelector() as selector:
        for session in found:
            selector.register(session.descriptor, selectors.EVENT_READ, session)
        while selector.get_map():
            for key, _ in selector.select(1.0):
                for told in key.data.progress():
                    say(key.data.label, told)
            for key in list(selector.get_map().values()):
                session = key.data
                session.give_up_if_late()
                if session.ready is not None or session.failure is not None:
                    selector.unregister(key.fd)
                if session.failure is not None:
                    # The others may take long.
                    say(session.label, session.failure.reason)
            for session in found:
                session.beat()
    unfit = [session.failure for session in found if session.failure is not None]
    if unfit:
        raise MachinesUnfit(unfit)


@contextmanager
def _gone() -> Iterator[None]:
    """Do nothing if the other end of a pipe is closed."""
    try:
        yield
    except BrokenPipeError:
        return


def _file(message: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return name and content of a file of packets; WrongContent unless it is one to be written to a directory."""
    name, content = message["packets"], message.get("content")
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or not isinstance(content, str):
        raise WrongContent("it sends packets without a name that a file may have")
    try:
        return name, base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise WrongContent(f"it sends packets that cannot be read: {name}") from None


def _printable(value: Any) -> Any:
    """Return a JSON value whose texts do nothing but print."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {_printable(name): _printable(each) for name, each in value.items()}
    return value

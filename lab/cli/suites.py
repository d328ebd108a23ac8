"""Suites under pytest, as `reloadlab run` has them run: the process, its records while it runs, and how it ended."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import lab
from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError, WrongCall
from lab.scenario.records import END, INTERRUPTED, Record, read
from lab.system.launch import module_argv
from lab.system.pace import slowness
from lab.system.process import end_with_parent

POLL = 0.2
"""Seconds between two looks at the records."""

_INTERNAL_ERROR, _USAGE_ERROR, _NO_TESTS = 3, 4, 5
"""Exit codes of pytest."""

_PATIENCE = 30.0
"""Seconds that an interrupted pytest has to take its nodes down."""


class PytestFailed(ReloadlabError):
    """pytest ended otherwise than its records say."""


@dataclass(frozen=True, slots=True)
class Call:
    """What pytest is called with; `handed_on` are options of pytest that the user gave, `failed` what failed last.

    `machines` is a file that says on which machines the scenarios run (lab.machines.spreading), None for this one.
    """

    paths: Sequence[Path] = ()
    select: str | None = None
    workers: str = "auto"
    library: Path | None = None
    loader: str | None = None
    attach: Attachment | None = None
    defines: Sequence[tuple[str, str]] = ()
    handed_on: Sequence[str] = ()
    failed: Sequence[str] = ()
    keep: bool = False
    pcap: Path | None = None
    machines: Path | None = None

    def argv(self, records: Path) -> list[str]:
        """Return the command line; everything that pytest writes goes below `records`."""
        # Modules of the current directory take the place neither of ours nor of Python's (-P and its variable). And it
        # is our packages that are run, also where the environment has another checkout of them installed.
        argv = module_argv("pytest")
        if self.machines is not None:
            return [*argv, *self._spread(records)]
        argv += ["-p", "reloadlab.short_names", "-n", self.workers]
        argv += ["--reloadlab-record", str(records), "-o", f"cache_dir={_cache(records)}"]
        argv += [] if self.handed_on else ["-q"]
        argv += ["-k", self.select] if self.select else []
        argv += [] if self.library is None else ["--reloadlab-library", str(self.library)]
        argv += [] if self.loader is None else ["--reloadlab-loader", self.loader]
        argv += [] if self.attach is None else ["--reloadlab-attach", self.attach]
        argv += ["--reloadlab-keep"] if self.keep else []
        argv += [] if self.pcap is None else ["--reloadlab-pcap", str(self.pcap)]
        argv += [word for name, value in self.defines for word in ("--reloadlab-define", f"{name}={value}")]
        argv += self.handed_on
        return [*argv, *pytest_arguments(self.paths)]

    def _spread(self, records: Path) -> list[str]:
        """Return the options that workers on other machines get as well: xdist takes each word that is a file here for
        one of theirs, so that none may be. Where the suites are, each side has in its environment."""
        argv = ["-preloadlab.short_names", f"--reloadlab-record={records}"]
        argv += [] if self.handed_on else ["-q"]
        argv += [f"-k{self.select}"] if self.select else []
        argv += [] if self.loader is None else [f"--reloadlab-loader={self.loader}"]
        argv += [] if self.attach is None else [f"--reloadlab-attach={self.attach}"]
        argv += [f"--reloadlab-define={name}={value}" for name, value in self.defines]
        return [*argv, *self.handed_on]

    def environment(self, records: Path, own: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for pytest; where scenarios are spread, it has the options of this side alone."""
        found = environment(own)
        if self.machines is None:
            return found
        options = [
            "-p",
            "reloadlab.short_names",
            "-p",
            "lab.machines.spreading",
            f"--reloadlab-machines={self.machines}",
        ]
        options += ["-o", f"cache_dir={_cache(records)}", *pytest_arguments(self.paths)]
        return found | {"PYTEST_ADDOPTS": shlex.join(options)}


def our_suites() -> Path:
    """Return the directory of the scenarios: beside this package in a checkout, apart from it when installed."""
    home = Path(lab.__file__).parents[1]
    installed = home.with_name("_suites") / "scenarios"
    return installed if installed.is_dir() else home / "scenarios"


def pytest_arguments(paths: Sequence[Path]) -> list[str]:
    """Return what pytest is called with to run the suites in `paths`; ours, if there are none."""
    if paths:
        return [str(path) for path in paths]
    ours = our_suites()
    # Where Hypothesis is installed, its plugin imports all of it at the end of a run; no suite of ours uses it.
    left_out = ("-p", "no:hypothesispytest")
    return [*left_out, "-c", str(ours / "suite.ini"), "--rootdir", str(ours.parent), str(ours)]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for pytest: ours without the PYTEST_ variables, which would change the call."""
    return {name: value for name, value in own.items() if not name.startswith("PYTEST_")} | {"PYTHONSAFEPATH": "1"}


class Suites:
    """A run of pytest that keeps its records in the empty directory `directory`.

    Its own output goes to a file there, or, where options are handed on to it, to the terminal: then it is pytest that
    the user talks to, and pytest that Ctrl-C ends. `stdout` is a descriptor that takes the place of our stdout then.
    """

    def __init__(self, call: Call, directory: Path, *, stdout: int | None = None) -> None:
        self._call = call
        self._directory = directory
        self._stdout = stdout
        self._log = None if call.handed_on else directory / "pytest.log"
        self._shares_terminal = bool(call.handed_on) and os.isatty(0)
        self._seen: dict[Path, tuple[int, int]] = {}
        self._records: dict[Path, Record] = {}
        self._exit_code = 0
        self._ended: bool | None = None

    def run(self, on_look: Callable[[list[Record]], object], on_stop: Callable[[], object] = lambda: None) -> None:
        """Run pytest to its end, or raise KeyboardInterrupt.

        `on_look` gets, all the time, the records that changed; `on_stop` is called before pytest is made to end early.
        """
        _seed_cache(self._directory, self._call.failed)
        try:
            with self._started(on_stop) as process:
                while process.poll() is None:
                    self._look(on_look)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL)
        except BaseException:
            # What was running then has not died: we have stopped it.
            self._ended = True
            raise
        else:
            self._exit_code = process.returncode
            self._ended = self._end() is not None
        finally:
            self._look(on_look)
        if self._end() == INTERRUPTED:
            raise KeyboardInterrupt

    @property
    def records(self) -> list[Record]:
        """The records in order of name; all of them are settled once pytest has ended."""
        found = sorted(self._records.values(), key=lambda record: record.name)
        return found if self._ended is None else [record.settled(ended=self._ended) for record in found]

    def check(self) -> None:
        """Raise WrongCall or PytestFailed unless the records say all that there is to say."""
        code, records = self._exit_code, self.records
        if code == _USAGE_ERROR:
            raise WrongCall(f"pytest does not understand the call: {self._complaint()}")
        if code == _NO_TESTS:
            what = self._call.select or " ".join(map(str, self._call.paths)) or "that"
            raise PytestFailed(f"no scenario matches {what}")
        if not records or code == _INTERNAL_ERROR or (code != 0 and all(record.good for record in records)):
            raise PytestFailed(f"pytest ended with exit code {code}" + "".join(f":\n{text}" for text in self._said()))

    @contextmanager
    def _started(self, on_stop: Callable[[], object]) -> Iterator[subprocess.Popen[bytes]]:
        """Run pytest; if something happens here, let it take its nodes down before going on."""
        with ExitStack() as stack:
            log = None if self._log is None else stack.enter_context(self._log.open("wb"))
            process = stack.enter_context(
                subprocess.Popen(
                    self._call.argv(self._directory),
                    stdout=self._stdout if log is None else log,
                    stderr=log,
                    env=self._call.environment(self._directory, os.environ),
                    # In a session of its own it does not hear Ctrl-C: we pass it on, once.
                    start_new_session=not self._shares_terminal,
                    preexec_fn=_interrupted_with_parent,
                )
            )
            if self._shares_terminal:
                stack.enter_context(_deaf_to_interrupts())
            try:
                yield process
            except BaseException:
                on_stop()
                self._stop(process)
                raise

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """Have pytest take its nodes down; kill it if that takes too long."""

        def send(number: signal.Signals) -> None:
            if self._shares_terminal:
                process.send_signal(number)
                return
            # It may have ended by itself by now.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

        send(signal.SIGINT)
        try:
            process.wait(_PATIENCE * slowness())
        except subprocess.TimeoutExpired:
            send(signal.SIGKILL)

    def _look(self, on_look: Callable[[list[Record]], object]) -> None:
        """Read the records that have changed since the last look."""
        changed = []
        for path in sorted(self._directory.glob("*.json")):
            status = path.stat()
            mark = status.st_ino, status.st_mtime_ns
            if self._seen.get(path) != mark:
                self._seen[path] = mark
                changed += read([path])
                self._records[path] = changed[-1]
        on_look(changed)

    def _end(self) -> str | None:
        try:
            return (self._directory / END).read_text()
        except FileNotFoundError:
            return None

    def _said(self) -> list[str]:
        """Return what pytest printed, if it is not on the terminal already."""
        return [] if self._log is None else [self._log.read_text(errors="replace").strip()]

    def _complaint(self) -> str:
        lines = [line for text in self._said() for line in text.splitlines()]
        found = [line for line in lines if "error: " in line.lower()]
        return found[-1].strip() if found else "see above"


def _interrupted_with_parent() -> None:
    """Have this process, a child that is about to be pytest, interrupted when the run is killed."""
    end_with_parent(signal.SIGINT)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Do nothing on Ctrl-C: pytest hears it as well and ends, or does not because its debugger goes on."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cache(directory: Path) -> Path:
    return directory / "cache"


def _seed_cache(directory: Path, failed: Sequence[str]) -> None:
    """Tell pytest what failed last, in the form of its own cache, which --lf and --ff read."""
    path = _cache(directory) / "v" / "cache" / "lastfailed"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dict.fromkeys(failed, True)))

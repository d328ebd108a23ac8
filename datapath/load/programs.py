"""Programs in the kernel: bound to maps and constants, verified in parallel, longest first."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from datapath.base.timing import Interval, VerifyTimes
from datapath.errors import BpfError, VerifierError
from datapath.kernel import bpf
from datapath.kernel.bpf import ProgLoad
from datapath.kernel.map import Map
from datapath.kernel.uapi import ProgInfo
from datapath.load.threads import NoThread
from datapath.load.types import TypeStore
from datapath.object.btfext import source_line
from datapath.object.spec import CollectionSpec, ProgramSpec

EAGAIN_TRIES = 5
"""The verifier gives EAGAIN when a signal is pending (libbpf tries as often)."""

LOG_START, LOG_GROWTH, LOG_MAX = 1 << 24, 8, 1 << 27
"""Bytes of the verifier's log: first buffer, growth from try to try, and where we give up on the detailed log."""

_INSTRUCTION = re.compile(r"(\d+): \([0-9a-f]{2}\)")
"""An instruction in the verifier's log."""

_NO_SINGLE_INSTRUCTION = ("BPF program is too large", "jumps is too complex")

_GUESS = 5e-6  # seconds per instruction, for a program that was never loaded: only the order depends on it


@dataclass(frozen=True, slots=True)
class Program:
    """A program by its open descriptor; `name` is its function's symbol."""

    fd: int
    name: str

    def info(self) -> ProgInfo:
        """Ask the kernel about it: a system call each time."""
        return bpf.prog_info(self.fd)

    @property
    def id(self) -> int:
        """The kernel's id, asked for each time."""
        return bpf.prog_id(self.fd)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def longest_first(programs: Iterable[ProgramSpec], times: VerifyTimes) -> list[ProgramSpec]:
    """Return the programs by the time they took; those never loaded stand where their size puts them."""
    known = times.seconds
    return sorted(programs, key=lambda p: known.get(p.name, len(p.insns) // 8 * _GUESS), reverse=True)


def bind(program: ProgramSpec, data: memoryview, maps: Mapping[str, Map]) -> bytearray:
    """Return the instructions with descriptors and constants written in; `data` is what `data_words` returns."""
    insns = bytearray(program.insns)
    words = memoryview(insns).cast("I")
    for index, name in program.map_refs:
        words[2 * index + 1] = maps[name].fd
    for index, offset in program.constant_refs:
        words[2 * index + 1] = data[offset >> 2]
    return insns


def data_words(data: bytes) -> memoryview:
    """Return an object's data as 32-bit words, the last one filled with zeros (a 16-bit constant may stand there)."""
    return memoryview(data + bytes(-len(data) % 4)).cast("I")


@dataclass(frozen=True, slots=True)
class Loading:
    """A program that is ready to be loaded. `types` is what the kernel is told when it is to explain a refusal."""

    program: ProgramSpec
    insns: bytearray
    license: str
    call: ProgLoad
    spec: CollectionSpec
    types: TypeStore

    @classmethod
    def make(
        cls, spec: CollectionSpec, program: ProgramSpec, data: memoryview, maps: Mapping[str, Map], types: TypeStore
    ) -> Self:
        """Bind a program to its maps and constants; `data` holds the spec's data as 32-bit words."""
        insns = bind(program, data, maps)
        # Functions of their own have types of their own: the verifier looks at them. Lines only explain a refusal.
        btf = types.of_program(spec, program) if program.subprograms else None
        call = bpf.prepare_prog_load(
            *(program.type, insns, spec.license),
            name=program.name,
            flags=program.flags,
            attach_type=program.attach_type,
            btf=btf,
        )
        return cls(program, insns, spec.license, call, spec, types)

    def load(self) -> Program:
        """Load the program; VerifierError with the whole log if it is refused, BpfError if the kernel fails.

        The first try asks for no log, which is what makes it fast; only a refused program is loaded again to hear why.
        """
        for _ in range(EAGAIN_TRIES):
            result = self.call()
            if result != -errno.EAGAIN:
                break
        if result < 0:
            result, log = self.load_with_log(level=bpf.LOG_LEVEL1 | bpf.LOG_LEVEL2)
            if result < 0:
                raise self.refusal(-result, log)
        return Program(result, self.program.name)

    def load_with_log(self, *, level: int) -> tuple[int, str]:
        """Load the program with a log that is large enough; returns the descriptor or a negative errno, and the log.

        A log that would pass LOG_MAX is asked for again without the states of every branch (level 2).
        """
        size = LOG_START
        tries = EAGAIN_TRIES
        btf = self.types.of_program(self.spec, self.program)
        while True:
            log = ctypes.create_string_buffer(size)
            result = bpf.prog_load(
                *(self.program.type, self.insns, self.license),
                name=self.program.name,
                log_level=level | bpf.LOG_STATS,
                log=log,
                flags=self.program.flags,
                attach_type=self.program.attach_type,
                btf=btf,
            )
            if result == -errno.EAGAIN and tries:
                tries -= 1
            elif result == -errno.ENOSPC and size < LOG_MAX:
                size = min(size * LOG_GROWTH, LOG_MAX)
            elif result == -errno.ENOSPC and level & bpf.LOG_LEVEL2:
                level &= ~bpf.LOG_LEVEL2
            else:
                text = log.value.decode(errors="replace")
                if result < 0 and btf is not None and _is_about_types(text):
                    self.types.note_refusal(self.program.name, text)
                    btf = None
                    continue
                return result, text

    def refusal(self, number: int, log: str) -> VerifierError | BpfError:
        """Return the error for a load that failed: without a word from the verifier it was not the verifier's doing."""
        program = self.program
        if number == errno.EAGAIN:
            said = f"program {program.name}: signals interrupted the verifier at every try"
            return BpfError("BPF_PROG_LOAD", number, said)
        if not log.strip():
            return BpfError("BPF_PROG_LOAD", number, f"program {program.name}: {os.strerror(number)}")
        at = refused_instruction(log)
        source = source_line(self.spec.btf, program.debug, at) if at is not None else None
        return VerifierError(program.name, number, program.instructions, log, source=source)


def refused_instruction(log: str) -> int | None:
    """Return the index of the instruction that a verifier's log blames: the one it looked at last.

    None if it came to none, or gave up for the size of the whole program.
    """
    if any(reason in log for reason in _NO_SINGLE_INSTRUCTION):
        return None
    found = None
    for line in log.splitlines():
        match = _INSTRUCTION.match(line)
        if match is not None:
            found = int(match[1])
    return found


def _is_about_types(log: str) -> bool:
    """Tell whether a load failed for what func_info or line_info say, before the verifier looked at an instruction."""
    return refused_instruction(log) is None and any(word in log for word in ("func_info", "line_info", "BTF"))


class _Work:
    """The programs still to load, taken by several threads, and what became of the others."""

    def __init__(self, spec: CollectionSpec, maps: Mapping[str, Map], order: VerifyTimes, types: TypeStore) -> None:
        self.loaded: dict[str, Program] = {}
        self.failed: dict[str, BpfError | VerifierError] = {}
        self._stop = threading.Event()
        data = data_words(spec.data)
        # All are made ready before the first is loaded: after each the caches are full of the verifier's data.
        self._queue = deque(
            Loading.make(spec, p, data, maps, types) for p in longest_first(spec.programs.values(), order)
        )
        self._seconds = order.seconds

    def drain(self) -> Interval:
        """Load programs until none is left or one has failed; returns when this thread did it."""
        start = time.monotonic_ns()
        while not self._stop.is_set():
            try:
                bound = self._queue.popleft()
            except IndexError:
                break
            name = bound.program.name
            began = time.monotonic()
            try:
                self.loaded[name] = bound.load()
            except (BpfError, VerifierError) as error:
                self.failed[name] = error
                self._stop.set()
            else:
                self._seconds[name] = time.monotonic() - began
        return Interval(threading.get_native_id(), start, time.monotonic_ns())

    def stop(self) -> None:
        self._stop.set()


def load_programs(
    spec: CollectionSpec,
    maps: Mapping[str, Map],
    *,
    executor: Executor | None = None,
    order: VerifyTimes | None = None,
    threads: int | None = None,
    types: TypeStore | None = None,
    on_interval: Callable[[Interval], None] | None = None,
) -> dict[str, Program]:
    """Load all programs of an object, in this thread and up to `threads` - 1 more of `executor`, longest first.

    The calling thread works too: an executor that is busy, or runs the caller, delays nothing and blocks nobody.
    `threads` counts the CPUs if not given; `on_interval` hears what the other threads did. If a program is refused, no
    further one is begun, all are closed, and the error of the first refused one (in the object's order) is raised.
    """
    spec.check()
    with TypeStore() as own_types:
        work = _Work(spec, maps, order if order is not None else VerifyTimes(), types or own_types)
        return _load_all(spec, work, executor, threads, on_interval)


def _load_all(
    spec: CollectionSpec,
    work: _Work,
    executor: Executor | None,
    threads: int | None,
    on_interval: Callable[[Interval], None] | None,
) -> dict[str, Program]:
    wanted = min(threads or len(os.sched_getaffinity(0)), len(spec.programs)) - 1 if executor is not None else 0
    helpers: list[Future[Interval]] = []
    try:
        if executor is not None:
            # One that cannot be started is done without: this thread works too.
            with suppress(NoThread):
                for _ in range(wanted):
                    helpers.append(executor.submit(work.drain))
        work.drain()
        _join(helpers, on_interval)
        for name in spec.programs:
            if name in work.failed:
                raise work.failed[name]
    except BaseException:
        work.stop()
        wait([helper for helper in helpers if not helper.cancel()])
        for program in work.loaded.values():
            program.close()
        raise
    return {name: work.loaded[name] for name in spec.programs}


def _join(helpers: list[Future[Interval]], on_interval: Callable[[Interval], None] | None) -> None:
    """Wait for the helpers that have begun; one that has not has nothing left to do."""
    for helper in helpers:
        if helper.cancel():
            continue
        interval = helper.result()
        if on_interval is not None:
            on_interval(interval)

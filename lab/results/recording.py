"""A measurement under way: its file is there from the beginning, and complete only at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.results.machine import this_machine
from lab.results.result import Course, Load, Result, Series, words, write_result
from lab.system.output import OutputDirectory


class Recording:
    """Collects a result, and keeps it in the file `out` if there is one; a context manager.

    The directory is opened, and the file written, before anything is measured: OSError or BadDirectory if it cannot be.
    If it cannot be written later, such as on a full disk, the end of the block raises that: what was measured is not
    lost to whoever prints it before.
    """

    def __init__(
        self,
        bench: str,
        *,
        options: Mapping[str, object],
        subjects: Mapping[str, Mapping[str, str]],
        out: Path | None = None,
    ) -> None:
        self._out = out
        self._output: OutputDirectory | None = None
        self._begin = time.monotonic()
        self._stack = ExitStack()
        self._failure: OSError | None = None
        self.result = Result(
            bench=bench,
            version=version("reloadlab"),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=this_machine(),
            load=Load(os.getloadavg()),
            options=words(options),
            subjects={side: dict(subject) for side, subject in subjects.items()},
        )

    def __enter__(self) -> Self:
        if self._out is not None:
            with ExitStack() as stack:
                self._output = stack.enter_context(OutputDirectory(self._out.parent))
                self._write()
                self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()
        if self._failure is not None and value is None:
            raise self._failure

    def save(
        self,
        series: Sequence[Series],
        course: Course,
        *,
        others: float | None = None,
        notes: Mapping[str, object] | None = None,
        complete: bool = True,
    ) -> Result:
        """Keep what was measured until now; `others` is the share of the CPUs that other processes had."""
        self.result = replace(
            self.result,
            seconds=round(time.monotonic() - self._begin, 3),
            load=Load(self.result.load.before, os.getloadavg(), None if others is None else round(others, 4)),
            course=course,
            notes=words(notes or {}),
            series=tuple(series),
            complete=complete,
        )
        try:
            self._write()
            self._failure = None
        except OSError as error:
            self._failure = error
        return self.result

    def _write(self) -> None:
        if self._output is not None and self._out is not None:
            write_result(self._output, self._out.name, self.result)

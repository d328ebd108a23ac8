"""What a CI server reads of `reloadlab run`: JUnit XML and a Markdown summary, written however the run ends."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.cli.report import RunFile, run_json
from lab.cli.targets import told, warned
from lab.report.junit import junit
from lab.report.summary import LIMIT, summary
from lab.report.wording import Document
from lab.system.output import OutputDirectory

_UNFINISHED = "the run has not come to its end: it was killed, or goes on"
"""What the file of a run says that had no time to write another."""


class CiFiles:
    """A context manager around a whole run: at its end it writes the files, with what was raised inside as the error.

    `run` is the run's own file as soon as there is one. The JUnit file is there from the beginning, so that of a run
    that is killed it tells an error, and not the results of the run before. OSError or BadDirectory at the beginning if
    a file cannot be written.
    """

    def __init__(self, junit_file: Path | None, summary_file: Path | None) -> None:
        self._junit_file, self._summary_file = junit_file, summary_file
        self._directories: dict[Path, OutputDirectory] = {}
        self._stack = ExitStack()
        self.run: RunFile | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for file in filter(None, (self._junit_file, self._summary_file)):
                self._directories[file] = stack.enter_context(OutputDirectory(file.parent))
            self._write_junit(_without_results(_UNFINISHED))
            if self._summary_file is not None:
                self._directories[self._summary_file].append(self._summary_file.name, "")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            if value is None:
                self._write({})
                return
            with warned():
                self._write(_without_results(told(value)))

    def _write(self, otherwise: Document) -> None:
        """Write both files from what the run has found, or else from this."""
        document = self.run.document if self.run is not None else otherwise
        self._write_junit(document)
        if self._summary_file is not None:
            self._append_summary(self._summary_file, document)

    def _write_junit(self, document: Document) -> None:
        if self._junit_file is not None:
            self._directories[self._junit_file].write(self._junit_file.name, junit(document))

    def _append_summary(self, file: Path, document: Document) -> None:
        directory = self._directories[file]
        text = summary(document, LIMIT - directory.size(file.name))
        if not text:
            print(f"reloadlab: warning: {file} is full: a summary has at most {LIMIT >> 20} MiB", file=sys.stderr)
        directory.append(file.name, text)


def _without_results(error: str) -> Document:
    return run_json((), None, 0.0, complete=False, error=error)

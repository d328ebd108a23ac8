"""The file of `reloadlab vm survey --out`: surveys of kernels, which other calls add to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.base.statefile import WrongContent
from lab.cli.targets import BadOption
from lab.system.output import OutputDirectory

if TYPE_CHECKING:
    from lab.vm.survey import Survey


@contextmanager
def kept_in(path: Path | None, surveys: list[Survey]) -> Iterator[Callable[[], None]]:
    """Add the surveys of a file to the empty list, and yield what writes the list there; None: no file.

    BadOption if the file is there and holds no surveys.
    """
    if path is None:
        yield lambda: None
        return
    from lab.vm.survey import kept

    with OutputDirectory(path.absolute().parent) as directory:
        text = directory.read(path.name)
        try:
            surveys += [] if text is None else kept(text)
        except WrongContent as error:
            raise BadOption(f"--out {path}: it is there and holds no surveys: {error}") from error
        yield lambda: directory.write(path.name, json.dumps([each.to_json() for each in surveys], indent=1) + "\n")

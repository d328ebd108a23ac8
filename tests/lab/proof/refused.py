"""Wrong calls of a command: what it says, and that it says no more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab.cli.main import main


def refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command says to a wrong call; it must not succeed."""
    try:
        code = main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert said.startswith("reloadlab: ")
    assert said.count("\n") == 1
    return said

"""Commands inside a network namespace, by the nsenter of util-linux."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

ELF = b"\x7fELF"


@cache
def program() -> str:
    """Return the path of util-linux's nsenter.

    The Python package nsenter, which the datapath uses, comes with a script of that name, which has no `--net=FILE`. It
    is found first wherever the environment's directory of programs leads PATH.
    """
    for directory in os.get_exec_path():
        path = Path(directory) / "nsenter"
        if path.is_file() and path.read_bytes()[:4] == ELF:
            return str(path)
    raise FileNotFoundError("nsenter of util-linux is not on PATH: apt-get install util-linux")


def nsenter(netns: Path | str, *argv: str) -> list[str]:
    """Return the command that runs another one inside a network namespace."""
    return [program(), f"--net={netns}", *argv]

"""What several commands share: naming a lab and what lives in it, numbers, tables."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from datapath.errors import InvalidName, ReloadlabError
from datapath.names import check_lab_name

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where there is no terminal to ask."""


class BadOption(ReloadlabError):
    """An option whose value cannot be used."""


def parse_target(text: str) -> tuple[str, str]:
    """Return (lab, name) of LAB/NAME; InvalidName if it is nothing of that form."""
    lab, _, name = text.partition("/")
    check_lab_name(lab)
    if not name or "/" in name:
        raise InvalidName("target", text, "LAB/NAME, such as demo/pod-1 or demo/host")
    return lab, name


def count(text: str) -> int:
    """Return a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def make_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for all columns in a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)


def plural(number: int, thing: str) -> str:
    """Return such as "1 pod" or "3 pods"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"

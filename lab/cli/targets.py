"""What several commands share: naming labs and what lives in them, numbers, the console."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapath.base.names import check_lab_name
from datapath.errors import InvalidName, ReloadlabError, WrongCall

if TYPE_CHECKING:
    from rich.console import Console

    from lab.node.node import Node

DEFAULT_LAB = "demo"

PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where there is no terminal to ask."""

NAMING = (
    "LAB is the name of a lab, or of a cluster: all its nodes. LAB/ENDPOINT is one endpoint, such as demo/pod-1 or \
demo/host."
)
"""What every command says about the names that it takes."""


class BadOption(WrongCall):
    """An option whose value cannot be used."""


class EndpointWithoutLab(ReloadlabError):
    """An endpoint that was named by itself, as a second argument after its lab."""

    def __init__(self, lab: str, endpoint: str) -> None:
        super().__init__(f"no lab {endpoint}; an endpoint is named with its lab: {lab}/{endpoint}")


class SeveralNodes(ReloadlabError):
    """The name of a cluster where one node is wanted."""

    def __init__(self, cluster: str, nodes: Sequence[str], endpoint: str) -> None:
        names = ", ".join(f"{node}/{endpoint}" for node in nodes)
        super().__init__(f"{cluster} is a cluster of {len(nodes)} nodes; name one of: {names}")


@dataclass(frozen=True, slots=True)
class Target:
    """A node and the names of its endpoints, in the order in which they were given; none stand for all."""

    node: Node
    endpoints: tuple[str, ...]

    @property
    def endpoint(self) -> str | None:
        """The one endpoint, None for all; for commands that take a single target."""
        return self.endpoints[0] if self.endpoints else None


def parse_target(text: str) -> tuple[str, str | None]:
    """Return (lab, endpoint) of LAB/ENDPOINT, (lab, None) of LAB; InvalidName if it is neither."""
    lab, slash, name = text.partition("/")
    check_lab_name(lab)
    if (slash and not name) or "/" in name:
        raise InvalidName("target", text, "LAB or LAB/ENDPOINT, such as demo, demo/pod-1 or demo/host")
    return lab, name or None


def check_targets(texts: Iterable[str], *, endpoints: bool = True) -> None:
    """Raise InvalidName for what is neither LAB nor, with `endpoints`, LAB/ENDPOINT; asks nothing of the machine."""
    for text in texts:
        lab, endpoint = parse_target(text)
        if endpoint is not None and not endpoints:
            raise InvalidName("lab name", text, f"the command takes a whole lab, such as {lab}")


def find_targets(texts: Sequence[str]) -> list[Target]:
    """Return the nodes that these names stand for, each once, in order of their first mention.

    Whether a node has the endpoints is left to the command. Raises InvalidName, LabNotFound, LabNotReady,
    EndpointWithoutLab.
    """
    from lab.errors import LabNotFound
    from lab.node import registry
    from lab.node.node import Node

    wanted: dict[str, list[str | None]] = {}
    nodes: dict[str, Node] = {}
    for text in texts:
        lab, endpoint = parse_target(text)
        for name in registry.labs_of(lab):
            try:
                if name not in nodes:
                    nodes[name] = Node.open(name)
            except LabNotFound:
                owner = next((node for node in nodes.values() if endpoint is None and _has(node, text)), None)
                if owner is not None:
                    raise EndpointWithoutLab(owner.name, text) from None
                raise
            wanted.setdefault(name, []).append(endpoint)
    return [Target(nodes[name], _all_or_named(endpoints)) for name, endpoints in wanted.items()]


def _has(node: Node, name: str) -> bool:
    from lab.node.topology import HEALTH, HOST

    return name in (HOST, HEALTH, *(pod.name for pod in node.pods))


def _all_or_named(endpoints: Sequence[str | None]) -> tuple[str, ...]:
    named = [endpoint for endpoint in endpoints if endpoint is not None]
    return tuple(named) if len(named) == len(endpoints) else ()


def add_targets(
    parser: argparse.ArgumentParser,
    *,
    several: bool = False,
    endpoints: bool = True,
    optional: bool = False,
    completer: Callable[..., Iterable[str]] | None = None,
    help: str,
) -> None:
    """Declare the positional argument `target`, or `targets`, that names what a command works on."""
    from lab.cli.completion import complete_labs, complete_targets

    number = ("*" if optional else "+") if several else ("?" if optional else None)
    action = parser.add_argument(
        "targets" if several else "target",
        nargs=number,
        metavar="LAB[/ENDPOINT]" if endpoints else "LAB",
        help=help,
    )
    completes(action, completer or (complete_targets if endpoints else complete_labs))


def completes(action: argparse.Action, completer: Callable[..., Iterable[str]]) -> None:
    """Let a shell complete the values of an argument with what `completer` returns."""
    action.completer = completer  # type: ignore[attr-defined]


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole_number(text: str) -> int:
    """Return a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def number(text: str) -> int:
    """Return a whole number, which may be 0 or negative."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def seconds(text: str, *, least: float = 0.0, most: float = 365 * 86400.0) -> float:
    """Return a number of seconds between two bounds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {least:g} to {most:.0f}")
    return value


def file_path(text: str) -> Path:
    """Return the path of a file that is to be written; ArgumentTypeError for one without a name, such as `.`."""
    path = Path(text)
    if not path.name:
        raise argparse.ArgumentTypeError(f"{text!r} names no file")
    return path


def near(word: str, words: Iterable[str]) -> str:
    """Return the end of an error's line that names the nearest of `words`, empty if none is near."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def told(error: BaseException) -> str:
    """Return what a user is told of an error, in one line or more."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error) if isinstance(error, ReloadlabError) else f"{type(error).__name__}: {error}"


def print_json(value: object) -> None:
    """Print a JSON document; docs/json.md says what is in those of each command."""
    print(json.dumps(value, indent=2))


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for all columns in a pipe."""
    from rich.console import Console

    # Names are told as they are: ":a:" is part of one, and no sign of Unicode's.
    plain: dict[str, Any] = {"highlight": False, "emoji": False}
    console = Console(**plain, stderr=stderr)
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, **plain, stderr=stderr)


@contextmanager
def warned() -> Iterator[None]:
    """Print what goes wrong inside, and go on: what has ended a command before is what it ends with."""
    try:
        yield
    except (OSError, ReloadlabError) as error:
        print(f"reloadlab: warning: {told(error)}", file=sys.stderr)

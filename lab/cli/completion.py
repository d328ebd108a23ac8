"""What a shell completes: labs and endpoints, read from the run directory; the rest argcomplete takes from the parsers.

The shell calls `reloadlab` itself at every TAB, with the line in the environment. Only the files of the labs are read:
no lock is taken, no lab is probed, and what cannot be read is no candidate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


def answer_shell() -> NoReturn:
    """Print the candidates for the line that the shell is completing, and end the process."""
    import argcomplete

    from lab.cli.main import COMMANDS, build_parser

    words = os.environ.get("COMP_LINE", "").split()
    wanted = next((word for word in words[1:] if word in COMMANDS), None)
    argcomplete.autocomplete(build_parser(wanted))
    # autocomplete() leaves by os._exit(); it returns only if it was not called by a shell.
    os._exit(1)


@dataclass(frozen=True, slots=True)
class _Lab:
    """What node.json says of a lab, as far as names go."""

    name: str
    cluster: str
    tunnel: bool
    xdp: bool
    pods: tuple[str, ...]


def complete_labs(prefix: str, **_: Any) -> list[str]:
    """Return the names of labs and clusters."""
    labs = list(_labs())
    return sorted({*(lab.name for lab in labs), *(lab.cluster for lab in labs if lab.cluster)})


def complete_targets(prefix: str, **_: Any) -> list[str]:
    """Return labs, or LAB/ENDPOINT once the slash is there: what can be reloaded."""
    return _targets(prefix, _endpoints)


def complete_namespaces(prefix: str, **_: Any) -> list[str]:
    """Return labs, or LAB/NAME once the slash is there: where a command can run."""
    return _targets(prefix, lambda _: ("host", "health", "outside"))


def _targets(prefix: str, own: Callable[[_Lab], Sequence[str]]) -> list[str]:
    """Return labs, each with and without a slash, or what is behind the slash: what every node has, and the pods."""
    name, slash, _ = prefix.partition("/")
    if not slash:
        return [candidate for lab in complete_labs(prefix) for candidate in (lab, f"{lab}/")]
    found = [lab for lab in _labs() if name in (lab.name, lab.cluster)]
    return [f"{name}/{endpoint}" for endpoint in sorted({e for lab in found for e in (*own(lab), *lab.pods)})]


def _endpoints(lab: _Lab) -> Sequence[str]:
    return ("host", *(["overlay"] if lab.tunnel else []), *(["xdp"] if lab.xdp else []), "health")


def _labs() -> Iterator[_Lab]:
    """Yield the labs that can be read."""
    from lab.node.registry import run_directory
    from lab.node.status import FACTS

    try:
        entries = sorted(os.scandir(run_directory()), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            with open(os.path.join(entry.path, FACTS)) as file:
                spec = json.load(file)["spec"]
            pods = tuple(str(pod["name"]) for pod in spec["pods"])
            yield _Lab(entry.name, str(spec["cluster"]), bool(spec["tunnel"]), spec.get("xdp") is not None, pods)
        except (OSError, ValueError, KeyError, TypeError):
            continue

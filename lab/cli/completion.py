"""What a shell completes: labs and endpoints, read from the run directory; the rest argcomplete takes from the parsers.

The shell calls `reloadlab` itself at every TAB, with the line in the environment. Only the files of the labs are read:
no lock is taken, no lab is probed, and what cannot be read is no candidate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
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


def complete_labs(prefix: str, **_: Any) -> list[str]:
    """Return the names of labs and clusters."""
    specs = dict(_specs())
    return sorted({*specs, *(spec["cluster"] for spec in specs.values() if spec.get("cluster"))})


def complete_targets(prefix: str, **_: Any) -> list[str]:
    """Return labs, or LAB/ENDPOINT once the slash is there: what can be reloaded."""
    return _targets(prefix, lambda spec: ("host", *(["overlay"] if spec.get("tunnel") else []), "health"))


def complete_namespaces(prefix: str, **_: Any) -> list[str]:
    """Return labs, or LAB/NAME once the slash is there: where a command can run."""
    return _targets(prefix, lambda _: ("host", "health", "outside"))


def _targets(prefix: str, own: Any) -> list[str]:
    specs = dict(_specs())
    lab, slash, _ = prefix.partition("/")
    if not slash:
        return [candidate for name in complete_labs(prefix) for candidate in (name, f"{name}/")]
    found = [spec for name, spec in specs.items() if lab in (name, spec.get("cluster"))]
    names = {name for spec in found for name in (*own(spec), *(pod["name"] for pod in spec["pods"]))}
    return [f"{lab}/{name}" for name in sorted(names)]


def _specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the labs that can be read, each with the specification of its node."""
    from lab.node.registry import run_directory
    from lab.node.status import FACTS

    try:
        entries = sorted(os.scandir(run_directory()), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            with open(os.path.join(entry.path, FACTS)) as file:
                yield entry.name, dict(json.load(file)["spec"])
        except (OSError, ValueError, KeyError, TypeError):
            continue

"""Which machine is meant: `ssh:HOST` or `vagrant:NAME`, with options after commas."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import WrongCall

SSH, VAGRANT = "ssh", "vagrant"

_NAME = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%\[\]-]*")
"""What a host or a machine may be called: nothing that ssh or vagrant would take for an option, or a shell for more."""

_OPTIONS = {SSH: ("workers", "port", "config"), VAGRANT: ("workers", "directory")}
MOST_WORKERS = 1024
"""Of one machine."""


class BadTarget(WrongCall):
    """A word that names no machine."""


@dataclass(frozen=True, slots=True)
class Target:
    """A machine as the user named it.

    `workers` is None for as many as it has CPUs. `port` and `config`, a file for `ssh -F`, are of SSH; `directory` is
    that of the Vagrantfile, None for the current one.
    """

    kind: str
    name: str
    workers: int | None = None
    port: int | None = None
    config: Path | None = None
    directory: Path | None = None

    @property
    def label(self) -> str:
        """What the machine is called in results: without its options."""
        return f"{self.kind}:{self.name}"


def parse_target(text: str) -> Target:
    """Return what `ssh:HOST[,workers=N][,port=N][,config=FILE]` or `vagrant:NAME[,workers=N][,directory=DIR]` names.

    BadTarget says what is wrong with it.
    """
    place, *words = text.split(",")
    kind, colon, name = place.partition(":")
    if kind not in _OPTIONS or not colon:
        raise BadTarget(f"{text!r} names no machine: it is ssh:HOST or vagrant:NAME")
    if not _NAME.fullmatch(name):
        raise BadTarget(f"{text!r}: {name!r} is no name of a machine, such as user@host")
    found: dict[str, str] = {}
    for word in words:
        option, equals, value = word.partition("=")
        if option not in _OPTIONS[kind] or not equals or not value or option in found:
            raise BadTarget(
                f"{text!r}: {word!r} is none of {', '.join(f'{each}=' for each in _OPTIONS[kind])}, once each"
            )
        found[option] = value
    return Target(
        kind,
        name,
        _number(text, found, "workers", MOST_WORKERS),
        _number(text, found, "port", 65535),
        _path(text, found, "config", directory=False),
        _path(text, found, "directory", directory=True),
    )


def check_different(targets: Sequence[Target]) -> None:
    """Raise BadTarget if a machine is named twice."""
    labels = [target.label for target in targets]
    for label in labels:
        if labels.count(label) > 1:
            raise BadTarget(f"{label} is named twice: for more scenarios at a time say {label},workers=N")


def _number(text: str, found: dict[str, str], option: str, most: int) -> int | None:
    value = found.get(option)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 1 <= int(value) <= most:
        raise BadTarget(f"{text!r}: {option}={value} is no number from 1 to {most}")
    return int(value)


def _path(text: str, found: dict[str, str], option: str, *, directory: bool) -> Path | None:
    value = found.get(option)
    if value is None:
        return None
    path = Path(value).expanduser().absolute()
    if not (path.is_dir() if directory else path.is_file()):
        raise BadTarget(f"{text!r}: {path}: no such {'directory' if directory else 'file'}")
    return path

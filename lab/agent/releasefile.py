"""Releases of Cilium that a file names: the C of each, and what loads it."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datapath.endpoint import Attachment
from datapath.errors import WrongCall
from lab.loaders.command import BadLoader, find_loader

KEYS = ("library", "loader", "attach")


class BadReleases(WrongCall):
    """A file that names no releases."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


@dataclass(frozen=True, slots=True)
class Release:
    """The C of a release (None: ours), the command of its loader (None: the built-in one), and how it attaches."""

    name: str
    library: Path | None = None
    loader: str | None = None
    attach: Attachment = Attachment.TC

    @property
    def options(self) -> dict[str, Any]:
        """Options of an agent that runs it, as marks and `Scenario.upgrade` take them."""
        return {name: getattr(self, name) for name in KEYS}

    @property
    def argv(self) -> list[str]:
        """The same as options of `reloadlab run`."""
        return [word for name, value in self.options.items() if value is not None for word in (f"--{name}", str(value))]


def read_releases(path: Path) -> list[Release]:
    """Return the releases of a TOML file in their order, a table for each; BadReleases if it cannot be used.

    A key is an option of `reloadlab run`. Paths are relative to the file; `~` is the caller's home.
    """
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise BadReleases(path, str(error.strerror)) from error
    except ValueError as error:
        # TOMLDecodeError and UnicodeDecodeError are.
        raise BadReleases(path, f"not TOML ({error})") from error
    return [_release(path, name, table) for name, table in document.items()]


def _release(path: Path, name: str, table: object) -> Release:
    # It is also the name of a directory, and of a test.
    if not name.isprintable() or "/" in name or not name.strip(". "):
        raise BadReleases(path, f"{name!r} cannot be the name of a release")
    if not isinstance(table, Mapping):
        raise BadReleases(path, f'{name} is no table: begin one with ["{name}"]')
    for key, value in table.items():
        if key not in KEYS:
            raise BadReleases(path, f"{name} has {key}; there are {', '.join(KEYS)}")
        if not isinstance(value, str) or not value:
            raise BadReleases(path, f"{name}: {key} is no text")
    try:
        loader = None if "loader" not in table else find_loader(table["loader"], path.parent)
        attach = Attachment(table.get("attach", Attachment.TC))
    except BadLoader as error:
        raise BadReleases(path, f"{name}: {error}") from error
    except ValueError as error:
        raise BadReleases(path, f"{name}: attach is {table['attach']!r}, not {', '.join(Attachment)}") from error
    library = (path.parent / Path(table["library"]).expanduser()).resolve() if "library" in table else None
    return Release(name, library, None if loader is None else shlex.join(loader.argv), attach)

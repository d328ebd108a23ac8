"""The files of an endpoint: its objects, which template each is made from and what is substituted; its header."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datapath.base.statefile import write_file
from datapath.build.epheader import HEADER_FILE, header_text
from datapath.build.template import Kind, Template
from datapath.endpoint import Endpoint, Interface
from datapath.object.spec import Substitution


@dataclass(frozen=True)
class ObjectFile:
    """One object of a reload, written to `path`. `device` is set for the copies that devices have.

    `endpoint` is None for the overlay and XDP, which belong to no endpoint.
    """

    kind: Kind
    path: Path
    generation: int
    endpoint: Endpoint | None = None
    device: Interface | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def upcoming(self) -> Path:
        """Where the copy lies until the reload commits: a failed reload must not replace the object that runs."""
        return Path(f"{self.path}.new")

    @property
    def _former(self) -> Path:
        return Path(f"{self.path}.old")

    def substitution(self, template: Template) -> Substitution:
        """Return what makes the template's object this one."""
        if self.kind is Kind.XDP and self.device is not None:
            return template.xdp_substitution(self.generation, self.device)
        if self.endpoint is None:
            return template.overlay_substitution(self.generation)
        if self.device is None:
            return template.substitution(self.endpoint)
        return template.device_substitution(self.endpoint, self.device.name, self.device.ifindex, self.device.mac)

    def write_header(self, template: Template) -> None:
        """Write the endpoint's ep_config.h, if it is not there or says something else; maps have the template's names.

        It comes before everything else, and stays if the load fails: it describes the endpoint, not a load. Whatever
        of an endpoint a killed process has left in the kernel, restore.py finds whose it is.
        """
        if self.endpoint is None or self.device is not None:
            return
        path, text = self.path.parent / HEADER_FILE, header_text(self.endpoint, policies=template.policies)
        try:
            if path.read_bytes() == text:
                return
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(path, text)

    def write(self, template: Template, *pieces: bytes | memoryview) -> None:
        """Write the header, and the copy piece by piece; OSError (a full disk, say) leaves no part of a file behind."""
        self.write_header(template)
        try:
            with os.fdopen(self._create(), "wb") as file:
                file.writelines(pieces)
        except OSError as error:
            self.discard()
            # write(2) does not say which file it was.
            raise OSError(error.errno, error.strerror, str(self.upcoming)) from error

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            return os.open(self.upcoming, flags, 0o600)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(self.upcoming, flags, 0o600)

    def publish(self) -> None:
        """Put the copy in its place. The former one is kept until `settle`, for `retract`, also if this fails."""
        with suppress(FileNotFoundError):
            try:
                os.link(self.path, self._former)
            except FileExistsError:
                os.unlink(self._former)  # left by a reload that was killed
                os.link(self.path, self._former)
        os.rename(self.upcoming, self.path)

    def retract(self) -> None:
        """Take `publish` back, which may not have come to it."""
        if self.upcoming.exists():
            self.settle()
            return
        with suppress(FileNotFoundError):
            self.path.rename(self.upcoming)
        with suppress(FileNotFoundError):
            self._former.rename(self.path)

    def settle(self) -> None:
        """Make `publish` final."""
        with suppress(FileNotFoundError):
            self._former.unlink()

    def discard(self) -> None:
        with suppress(FileNotFoundError):
            self.upcoming.unlink()

"""Machines that Vagrant started from the Vagrantfile of this checkout."""

from __future__ import annotations

import pwd
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ReloadlabError, ToolError
from lab.system import tools

_STATE = Path(".vagrant", "machines")
_SECONDS = 600.0


class CannotEnd(ReloadlabError):
    """Machines that Vagrant could not end."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that Vagrant has made: its name in the Vagrantfile, the provider, the provider's own identifier."""

    name: str
    provider: str
    id: str


def machines(checkout: Path) -> list[Machine]:
    """Return the machines that there are of a checkout, running or not."""
    return [
        Machine(path.parent.parent.name, path.parent.name, path.read_text().strip())
        for path in sorted((checkout / _STATE).glob("*/*/id"))
    ]


def destroy(checkout: Path, names: Sequence[str]) -> None:
    """Let Vagrant end machines, and delete their disks; CannotEnd carries its words."""
    if shutil.which("vagrant") is None:
        raise CannotEnd(f"{', '.join(names)} cannot be ended without vagrant: apt-get install vagrant vagrant-libvirt")
    user = (checkout / _STATE).stat().st_uid
    try:
        owner = pwd.getpwuid(user)
    except KeyError:
        reason = f"they are user {user}'s, whom this system does not know: call vagrant destroy as that user"
        raise CannotEnd(f"{', '.join(names)} cannot be ended: {reason}") from None
    # What Vagrant keeps is that of the user who called it.
    argv = ["runuser", "-u", owner.pw_name, "--", "env", "-C", str(checkout), f"HOME={owner.pw_dir}", "vagrant"]
    try:
        tools.run([*argv, "destroy", "--force", *names], timeout=_SECONDS)
    except ToolError as error:
        said = " ".join(error.stderr.split())
        raise CannotEnd(f"vagrant could not end {', '.join(names)}: {said}") from error


def domains() -> list[str]:
    """Return the names of what libvirt has; empty where it is not there, or does not answer."""
    if shutil.which("virsh") is None:
        return []
    try:
        return tools.run(["virsh", "--connect", "qemu:///system", "list", "--all", "--name"]).strip().splitlines()
    except ToolError:
        return []

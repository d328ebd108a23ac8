"""How a machine is reached: the arguments of ssh, and what its errors mean."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ReloadlabError
from lab.machines.target import VAGRANT, Target
from lab.system import tools
from lab.system.pace import slowness

OPTIONS = {
    "BatchMode": "yes",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    # A connection that others share would outlive its user, or end with theirs.
    "ControlMaster": "no",
    "ControlPath": "none",
    # What the user's configuration has for a person who logs in. A machine under test needs no agent of ours.
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
}
"""Nothing is asked, a machine that is gone is noticed within a minute, and nothing of ours is open to it."""

CONNECT_TIMEOUT = 10
"""Seconds that a machine that is not slow has to answer, its SSH server's first line included."""

VAGRANT_TIMEOUT = 120
"""Seconds, of a machine that is not slow."""

CANNOT_CONNECT = 255
"""Exit code of ssh if it is ssh itself that has failed."""

NO_PYTHON, NO_SUDO = 41, 42
"""Exit codes of the far shell."""


class MachineUnfit(ReloadlabError):
    """A machine that cannot take part; `label` is its name."""

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(f"{label}: {reason}")
        self.label = label
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Route:
    """What ssh is called with; `config` is its configuration file, None for the user's own."""

    host: str
    config: Path | None
    port: int | None

    def options(self, slowness: float = 1) -> list[str]:
        """Return the options but for the configuration file, and the host; a slow machine has longer to answer."""
        values = OPTIONS | {"ConnectTimeout": f"{CONNECT_TIMEOUT * slowness:.0f}"}
        options = [word for name, value in values.items() for word in ("-o", f"{name}={value}")]
        return [*options, *(() if self.port is None else ("-p", str(self.port))), self.host]

    def argv(self, *command: str) -> list[str]:
        """Return the call that runs a command there; its words arrive as they are."""
        own = [] if self.config is None else ["-F", str(self.config)]
        return [str(tools.find("ssh")), *own, *self.options(), shlex.join(command)]


def route_to(target: Target, directory: Path) -> Route:
    """Return the way to a machine; Vagrant's own configuration goes to a file in `directory`. MachineUnfit."""
    if target.kind != VAGRANT:
        return Route(target.name, target.config, target.port)
    config = directory / f"vagrant-{target.name}.ssh"
    config.write_text(_vagrant_config(target))
    return Route(target.name, config, None)


def _vagrant_config(target: Target) -> str:
    """Return how ssh reaches a machine of Vagrant's, as Vagrant says: asked once, as it takes seconds to start."""
    argv = [str(tools.find("vagrant")), "ssh-config", target.name]
    timeout = VAGRANT_TIMEOUT * slowness()
    try:
        done = subprocess.run(
            argv,
            cwd=target.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"vagrant ssh-config {target.name}: no answer within {timeout:g} s"
        raise MachineUnfit(target.label, reason) from None
    if done.returncode != 0:
        raise MachineUnfit(target.label, vagrant_reason(done.stdout + done.stderr, target.name))
    return done.stdout


def vagrant_reason(said: str, name: str) -> str:
    """Return why Vagrant tells no way to a machine, from what it has said."""
    if "not yet ready for SSH" in said or "must be created before" in said:
        return f"it does not run: vagrant up {name}"
    sentence = " ".join(said.split()).partition(". ")[0]
    return f"vagrant ssh-config {name}: {sentence or 'it failed without a word'}"


def reason_of(code: int, stderr: str, host: str) -> str:
    """Return why a connection came to nothing, with its remedy: from the exit code and the errors of ssh."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"ssh ended with exit code {code}"
    if code == NO_PYTHON:
        return "there is no python3: install it there (apt-get install python3)"
    if code == NO_SUDO:
        return "the user there is not root, and there is no sudo: log in as root, or install sudo there"
    if code != CANNOT_CONNECT:
        return _far_reason(last)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        return f"its host key has changed: find out why, then ssh-keygen -R {host}"
    if "Host key verification failed" in stderr:
        return f"its host key is not known here: log in once to compare it (ssh {host})"
    if "Permission denied" in stderr:
        return f"it accepts none of the keys here: ssh-copy-id {host}, or name one in ~/.ssh/config"
    return f"it cannot be reached: {_plain(last)}"


def _far_reason(last: str) -> str:
    if last.startswith("sudo:"):
        return f"{last}: let the user there become root without a password (NOPASSWD in sudoers), or log in as root"
    return last


def _plain(line: str) -> str:
    return line.removeprefix("ssh: ")

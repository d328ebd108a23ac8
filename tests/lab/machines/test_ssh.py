"""What the errors of ssh and Vagrant mean; the texts are those of OpenSSH 9.2 and Vagrant 2.3.4."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from lab.machines import ssh
from lab.machines.ssh import MachineUnfit, Route, reason_of, route_to, vagrant_reason
from lab.machines.target import Target
from lab.system.pace import SLOWNESS_VARIABLE

NOT_READY = """The provider for this Vagrant-managed machine is reporting that it
is not yet ready for SSH. Depending on your provider this can carry
different meanings. Make sure your machine is created and running and
try again.
"""
UNKNOWN = """The machine with the name 'new' was not found configured for
this Vagrant environment.
"""
NO_FILE = """A Vagrant environment or target machine is required to run this
command. Run `vagrant init` to create a new Vagrant environment. Or,
get an ID of a target machine from `vagrant global-status` to run
this command on. A final option is to change to a directory with a
Vagrantfile and to try again.
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (NOT_READY, "it does not run: vagrant up new"),
        (UNKNOWN, "vagrant ssh-config new: The machine with the name 'new' was not found configured for this Vagrant"),
        (NO_FILE, "vagrant ssh-config new: A Vagrant environment or target machine is required to run this command"),
        ("", "vagrant ssh-config new: it failed without a word"),
    ],
)
def test_what_vagrant_says_is_one_line(said: str, reason: str) -> None:
    told = vagrant_reason(said, "new")
    assert told.startswith(reason)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (
            255,
            "ssh: Could not resolve hostname x: Name or service not known",
            "it cannot be reached: Could not resolve",
        ),
        (
            255,
            "ssh: connect to host x port 22: No route to host",
            "it cannot be reached: connect to host x port 22: No",
        ),
        (255, "banner\nroot@x: Permission denied (publickey).", "it accepts none of the keys here: ssh-copy-id x"),
        (255, "", "it cannot be reached: ssh ended with exit code 255"),
        (1, "sudo: a password is required", "sudo: a password is required: let the user there become root without"),
        (41, "", "there is no python3: "),
        (42, "", "the user there is not root, and there is no sudo: "),
        (2, "Traceback:\nOSError: no space left", "OSError: no space left"),
    ],
)
def test_every_end_of_a_connection_has_a_reason(code: int, said: str, reason: str) -> None:
    assert reason_of(code, said, "x").startswith(reason)


def test_words_arrive_as_they_are() -> None:
    command = Route("x", None, 22).argv("sh", "-c", "echo $0", "a 'b'")[-1]
    assert shlex.split(command) == ["sh", "-c", "echo $0", "a 'b'"]


def test_nothing_of_ours_is_open_to_a_machine() -> None:
    options = Route("x", None, 22).options()
    assert {"ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "RemoteCommand=none"} <= set(options)


def test_a_vagrant_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vagrant").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "vagrant").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ssh, "VAGRANT_TIMEOUT", 0.1)
    monkeypatch.setenv(SLOWNESS_VARIABLE, "3")
    with pytest.raises(MachineUnfit, match=r"vagrant:new: vagrant ssh-config new: no answer within 0\.3 s"):
        route_to(Target("vagrant", "new"), tmp_path)

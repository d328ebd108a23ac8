"""Machines that cannot take part: one line each, with the remedy; and what set-up leaves and uses again."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lab.machines import session as session_module
from lab.machines.session import MachinesUnfit, Order, Session, prepare, sessions
from lab.machines.ssh import route_to
from lab.machines.target import Target, parse_target
from lab.machines.tree import Tree, tree_of
from tests.lab.machines.farmachine import FarMachine, far_machine
from tests.lab.machines.test_unfriendly import FOUND

pytestmark = pytest.mark.privileged

EXAMINE = f"""
import json, os
facts = json.loads({json.dumps(FOUND)!r})
facts["identity"]["host"] = os.environ["RELOADLAB_RUN"]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarMachine]:
    with far_machine(tmp_path_factory.mktemp("machine"), "delta", environment=False) as made:
        yield made


def project(directory: Path, setup: str) -> Tree:
    """Return a tree with a set-up of its own that has what the far side asks of ours."""
    (directory / "tools").mkdir(parents=True)
    (directory / "tools" / "setup").write_text(setup)
    (directory / "lab" / "machines").mkdir(parents=True)
    (directory / "lab" / "machines" / "examine.py").write_text(EXAMINE)
    return tree_of(directory)


WORKS = """
echo "setup: installing" >&2
test "$PWD" = "$(cd "$(dirname "$0")/.." && pwd)" || exit 7
mkdir -p .venv/bin && ln -s "$(command -v python3)" .venv/bin/python
"""


def ready(target: Target, tree: Tree, directory: Path) -> tuple[list[str], Session]:
    """Make a machine ready; return what was told meanwhile, and its session, which has ended by then."""
    told: list[str] = []
    order = Order(f"for-{tree.key}", (tree,), os.urandom(4).hex())
    directory.mkdir(exist_ok=True)
    wanted = [(target, route_to(target, directory), order)]
    with sessions(wanted, directory, warn=told.append, packets=print) as found:
        prepare(found, lambda _, text: told.append(text))
    return told, found[0]


def reason(target: Target, tree: Tree, directory: Path) -> str:
    with pytest.raises(MachinesUnfit) as caught:
        ready(target, tree, directory)
    (unfit,) = caught.value.unfit
    assert str(caught.value) == f"{target.label}: {unfit.reason}"
    assert "\n" not in unfit.reason
    return unfit.reason


def variant(machine: FarMachine, old: str, new: str, place: Path) -> Target:
    """Return the machine with another way to it."""
    text = machine.config.read_text()
    assert old in text
    place.write_text(text.replace(old, new))
    return replace(parse_target(machine.option), config=place)


def test_a_machine_is_set_up_once_and_files_are_copied_once(
    machine: FarMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a slow machine: it hears again and again that we are here before it asks for files.
    monkeypatch.setattr(session_module, "BEAT", 0.0)
    tree = project(tmp_path / "project", WORKS)
    target = parse_target(machine.option)
    told, session = ready(target, tree, tmp_path / "run")
    assert told == [f"copying {tree.root} (2 files)", "setting up, which takes about a minute and is done once"]
    assert session.ready is not None
    assert session.workers == 3
    assert session.ready.identity.host == f"/run/reloadlab-{session.order.token}"
    told, _ = ready(target, tree, tmp_path / "run")
    assert told == []
    # A change of a file that set-up does not depend on is only copied.
    (tree.root / "more.py").touch()
    changed = replace(tree_of(tree.root), root=tree.root)
    order = Order(f"for-{tree.key}", (changed,), "feed")
    wanted = [(target, route_to(target, tmp_path), order)]
    with sessions(wanted, tmp_path, warn=told.append, packets=print) as found:
        prepare(found, lambda _, text: told.append(text))
    assert told == [f"copying {tree.root} (3 files)"]
    assert os.listdir(machine.base / "runs") == []
    # It belongs to root alone.
    places = [machine.base, *(path for path in machine.base.iterdir() if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in places} == {0o700}


def test_a_directory_that_others_can_look_into_is_not_used(machine: FarMachine, tmp_path: Path) -> None:
    machine.base.mkdir(exist_ok=True)
    machine.base.chmod(0o755)
    try:
        told = reason(parse_target(machine.option), project(tmp_path / "other", WORKS), tmp_path / "run")
    finally:
        machine.base.chmod(0o700)
    assert told == "/var/cache/reloadlab/machines is not a directory of root's alone: remove it"


def test_a_set_up_that_fails_says_its_own_last_line(machine: FarMachine, tmp_path: Path) -> None:
    fails = "echo 'E: no network' >&2; echo 'setup: apt-get could not install it (is the network there?)' >&2; exit 1"
    tree = project(tmp_path / "project", fails)
    told = reason(parse_target(machine.option), tree, tmp_path / "run")
    log = "/var/cache/reloadlab/machines/setup.log"
    assert told == f"set-up failed: apt-get could not install it (is the network there?); all it said is there in {log}"
    assert "E: no network" in (machine.base / "setup.log").read_text()
    # It is tried again, and not taken for done.
    assert reason(parse_target(machine.option), tree, tmp_path / "run") == told
    assert os.listdir(machine.base / "runs") == []


def test_ways_that_lead_nowhere(machine: FarMachine, tmp_path: Path) -> None:
    tree, run, config = project(tmp_path / "project", WORKS), tmp_path / "run", tmp_path / "config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "user"], timeout=60, check=True)
    target = variant(machine, f"IdentityFile {machine.home}/user", f"IdentityFile {tmp_path}/user", config)
    told = "it accepts none of the keys here: ssh-copy-id delta, or name one in ~/.ssh/config"
    assert reason(target, tree, run) == told
    target = variant(machine, f"UserKnownHostsFile {machine.home}/known", "UserKnownHostsFile /dev/null", config)
    assert reason(target, tree, run) == "its host key is not known here: log in once to compare it (ssh delta)"
    known = tmp_path / "known"
    known.write_text(f"delta {(tmp_path / 'user.pub').read_text()}")
    target = variant(machine, f"UserKnownHostsFile {machine.home}/known", f"UserKnownHostsFile {known}", config)
    assert reason(target, tree, run) == "its host key has changed: find out why, then ssh-keygen -R delta"
    config.write_text("Host delta\n  HostName 127.0.0.1\n  Port 1\n")
    assert "connect to host 127.0.0.1 port 1: Connection refused" in reason(target, tree, run)


def test_a_user_who_cannot_become_root(machine: FarMachine, tmp_path: Path) -> None:
    target = variant(machine, "User root", "User stranger", tmp_path / "config")
    told = reason(target, project(tmp_path / "project", WORKS), tmp_path / "run")
    assert told.startswith(("the user there is not root, and there is no sudo: ", "sudo: "))
    assert "log in as root" in told


def test_a_machine_without_python(machine: FarMachine, tmp_path: Path) -> None:
    target, tree = parse_target(machine.option), project(tmp_path / "project", WORKS)
    ask = route_to(target, tmp_path).argv("sh", "-c", "command -v python3 || true")
    with ExitStack() as stack:
        while found := subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True).stdout.strip():
            machine.hide(Path(found))
            stack.callback(machine.show, Path(found))
        told = reason(target, tree, tmp_path / "run")
    assert told == "there is no python3: install it there (apt-get install python3)"


def test_a_machine_of_vagrant_is_reached_as_vagrant_says(
    machine: FarMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In place of Vagrant, which would have to start a virtual machine: it is asked one thing alone.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vagrant").write_text(
        f'#!/bin/sh\n[ "$*" = "ssh-config delta" ] && [ "$PWD" = {machine.home} ] && cat {machine.config}\n'
    )
    (tmp_path / "bin" / "vagrant").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    target = parse_target(f"vagrant:delta,directory={machine.home}")
    _, session = ready(target, project(tmp_path / "project", WORKS), tmp_path / "run")
    assert session.label == "vagrant:delta"
    assert "ssh_config=" in session.spec()

"""A machine to log in to: namespaces of its own with an SSH server, which is reached without any network.

It has its own processes, network, host name, /run, /var/cache/reloadlab and accounts, and this machine's kernel and
files besides. ssh calls `connect.py` for a socket whose other end a new server has: nothing listens anywhere.

What takes long on a new machine, and is not what a test looks at, it has from the beginning: our environment, our tree,
and what other tests of the session have compiled of C and Python.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.machines.session import BASE
from lab.machines.tree import Tree, environment_key, our_tree
from lab.system.cache import cache_directory
from tests.lab.labs import ROOT
from tests.netns import program as nsenter_program

CACHE = Path(BASE).parent

STRANGER = "stranger:x:4242:4242::/run/stranger:/bin/sh\n"
"""A user of the machine who is nobody."""

_BEGIN = """
set -eu
mount -t tmpfs -o mode=755 tmpfs /run
mount -t sysfs sysfs /sys
mount --bind "$1/cache" /var/cache/reloadlab
if [ -n "$3" ]; then
    mount --bind "$3" /var/cache/reloadlab/objects
    mount --bind "$4" "$5"
fi
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/ssh" /root/.ssh
hostname "$2"
mkdir -p /run/stranger/.ssh
cp "$1/user.pub" /run/stranger/.ssh/authorized_keys
chown -R 4242 /run/stranger
ip link set lo up
echo ready
exec cat
"""


@dataclass(frozen=True)
class FarMachine:
    """`process` is the first of the machine, as seen from here; `config` is how ssh reaches it, as the host `name`."""

    name: str
    home: Path
    config: Path
    process: subprocess.Popen[bytes]

    @property
    def option(self) -> str:
        """What --on is given."""
        return f"ssh:{self.name},config={self.config}"

    @property
    def first_pid(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())

    @property
    def base(self) -> Path:
        """Where it keeps what it is given."""
        return self.home / "cache" / Path(BASE).name

    def switch_off(self) -> None:
        """End all of its processes at once."""
        os.kill(self.first_pid, signal.SIGKILL)
        self.process.wait()

    def processes(self) -> list[str]:
        """Return the commands of its processes but for the first and those of its own ends of connections."""
        argv = [*self.enter, "ps", "-eo", "pid=,args="]
        listed = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        found = [line.split(None, 1) for line in listed]
        return [
            command
            for pid, command in found
            if pid != "1" and not command.startswith("ps ") and "<defunct>" not in command
        ]

    @property
    def enter(self) -> list[str]:
        return [nsenter_program(), "-t", str(self.first_pid), "--mount", "--uts", "--net", "--pid", "--"]

    def hide(self, path: Path) -> None:
        """Let a program not be there."""
        self.run("mount", "--bind", "/dev/null", str(path.resolve()))

    def show(self, path: Path) -> None:
        """Let a program that was hidden be there again."""
        self.run("umount", str(path.resolve()))

    def run(self, *argv: str) -> str:
        """Run a command there as root, without ssh."""
        return subprocess.run([*self.enter, *argv], capture_output=True, text=True, timeout=60, check=True).stdout


@contextmanager
def far_machine(home: Path, name: str, *, environment: bool = True) -> Iterator[FarMachine]:
    """Yield a machine whose files are in `home`. With `environment` ours is there, set up and copied."""
    server = shutil.which("dropbear", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if server is None:
        pytest.skip("no dropbear: make test installs it (apt-get install dropbear-bin)")
    for directory in ("cache", "ssh"):
        (home / directory).mkdir(parents=True)
    home.chmod(0o700)
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    Path("/root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (home / "passwd").write_text(Path("/etc/passwd").read_text() + STRANGER)
    _keys(home, name)
    known = _known(home / "cache") if environment else ("", "", "")
    argv = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*argv, "sh", "-c", _BEGIN, "sh", str(home), name, *known], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        machine = FarMachine(name, home, home / "config", process)
        _configure(machine, server)
        yield machine
    finally:
        process.kill()
        process.communicate()


def _known(cache: Path) -> tuple[str, str, str]:
    """Put our environment where a machine has it; return what to mount: compiled objects, our tree, and its place."""
    base = cache / Path(BASE).name
    environment = base / "environments" / environment_key(ROOT)
    tree = our_tree()
    place = base / "trees" / tree.key
    objects = cache_directory()
    assert objects is not None
    for path in (environment, place, cache / "objects", objects):
        path.mkdir(parents=True, exist_ok=True)
    (environment / ".venv").symlink_to(ROOT / ".venv")
    (environment / "ready").touch()
    for path in (base, environment.parent, place.parent):
        path.chmod(0o700)
    return str(objects), str(_unpacked(tree, objects.parent / "trees")), f"{BASE}/trees/{tree.key}"


def _unpacked(tree: Tree, directory: Path) -> Path:
    """Return a copy of our tree for all machines of the session, as `lab.machines.remote` unpacks it."""
    place = directory / tree.key
    if not place.exists():
        directory.mkdir(exist_ok=True)
        upcoming = Path(tempfile.mkdtemp(dir=directory))
        with tarfile.open(fileobj=io.BytesIO(tree.packed())) as archive:
            archive.extractall(upcoming)
        try:
            upcoming.rename(place)
        except OSError as error:
            # Another worker of the session was first.
            if error.errno != errno.ENOTEMPTY:
                raise
            shutil.rmtree(upcoming)
    return place


def _keys(home: Path, name: str) -> None:
    """Make the key of the machine and that of its user, and let each side know the other's."""
    for argv in (
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "user")],
        ["dropbearkey", "-t", "ed25519", "-f", str(home / "host")],
    ):
        subprocess.run(argv, capture_output=True, timeout=60, check=True)
    argv = ["dropbearkey", "-y", "-f", str(home / "host")]
    shown = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    public = next(line for line in shown.splitlines() if line.startswith("ssh-"))
    (home / "known").write_text(f"{name} {public}\n")
    (home / "ssh").chmod(0o700)
    (home / "ssh" / "authorized_keys").write_text((home / "user.pub").read_text())
    (home / "ssh" / "authorized_keys").chmod(0o600)


def _configure(machine: FarMachine, server: str) -> None:
    connect = Path(__file__).with_name("connect.py")
    argv = [*machine.enter, server, "-i", "-s", "-m", "-r", str(machine.home / "host")]
    machine.config.write_text(
        f"Host {machine.name}\n"
        "  User root\n"
        f"  IdentityFile {machine.home}/user\n"
        "  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {machine.home}/known\n"
        "  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n"
        f"  ProxyCommand {sys.executable} -I {connect} {' '.join(argv)}\n"
        "  ProxyUseFdpass yes\n"
    )

"""The far side of a run: what it removes, and what it tells of what it cannot remove."""

from __future__ import annotations

import fcntl
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.machines import remote


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a far side whose labs are below it as well."""
    monkeypatch.setattr(remote, "labs_of", lambda token: str(tmp_path / "labs" / token))
    for name in ("environments", "trees", "runs", "labs"):
        (tmp_path / name).mkdir()
    return tmp_path


def run_of(base: Path, token: str, python: str = "/no/such/python") -> Path:
    """Make what a run has there."""
    run = base / "runs" / token
    run.mkdir()
    (run / "python").write_text(f"{python}\n/no/such/tree\n")
    return run


@pytest.fixture
def worker(base: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that is known for a worker of the run `dead`."""
    with subprocess.Popen(["sleep", "60"], env={"RELOADLAB_RUN": remote.labs_of("dead")}) as process:
        yield process
        process.kill()


@pytest.mark.privileged
def test_a_run_whose_process_was_killed_is_cleared_and_one_that_lives_is_not(
    base: Path, worker: subprocess.Popen[bytes]
) -> None:
    run_of(base, "dead")
    alive = os.open(run_of(base, "alive"), os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    assert remote.remove_dead_runs(str(base)) == []
    os.close(alive)
    assert worker.wait(0) != 0
    assert os.listdir(base / "runs") == ["alive"]


@pytest.mark.privileged
@pytest.mark.parametrize("python", ["/bin/false", "/no/such/python"])
def test_labs_that_remain_are_told_and_tried_again_by_the_next_run(base: Path, python: str) -> None:
    labs = base / "labs" / "dead"
    labs.mkdir()
    run = run_of(base, "dead", python)
    (told,) = remote.remove_dead_runs(str(base))
    assert told.startswith(f"labs remain in {labs}: ")
    (run / "python").write_text("/bin/true\n/no/such/tree\n")
    assert remote.remove_dead_runs(str(base)) == []
    assert (os.listdir(base / "labs"), os.listdir(base / "runs")) == ([], [])


def test_only_files_are_packets(base: Path) -> None:
    packets = run_of(base, "alive") / "packets"
    (packets / "directory").mkdir(parents=True)
    (packets / "a.pcapng").write_bytes(b"\1")
    (packets / "link").symlink_to("/etc/shadow")
    assert list(remote.packets(str(base / "runs" / "alive"))) == [("a.pcapng", b"\1")]


def test_a_server_that_is_killed_ends_the_wait() -> None:
    ours, theirs = socket.socketpair()
    program = "import os; from lab.machines import remote; os.write(0, b'unread'); remote.wait_for_the_end()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=theirs.fileno()) as process:
        theirs.close()
        assert ours.recv(1, socket.MSG_PEEK) == b"u"
        # The end of a socket with something unread is an error at the other one.
        ours.close()
        assert process.wait(60) == 0


@pytest.mark.privileged
@pytest.mark.parametrize("size", ["512k", "1m"], ids=["tree", "environment"])
def test_a_full_disk_is_one_line_that_says_where(tmp_path: Path, size: str) -> None:
    """The tree has 600 kB, and is copied once more for the environment."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(60):
            member = tarfile.TarInfo(f"file-{number}")
            member.size = 10_000
            archive.addfile(member, io.BytesIO(os.urandom(10_000)))
    wanted = {"base": str(tmp_path / "base"), "token": "t", "environment": "e", "trees": ["k"], "files": {}}
    (tmp_path / "base").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "full", tmp_path / "base"], timeout=60, check=True
    )
    try:
        done = subprocess.run(
            [sys.executable, remote.__file__],
            input=json.dumps(wanted).encode() + b"\n%d\n" % len(buffer.getvalue()) + buffer.getvalue(),
            capture_output=True,
            timeout=60,
            check=True,
        )
    finally:
        subprocess.run(["umount", tmp_path / "base"], timeout=60, check=True)
    *_, last = map(json.loads, done.stdout.splitlines())
    assert last == {"failed": f"{tmp_path}/base: No space left on device"}

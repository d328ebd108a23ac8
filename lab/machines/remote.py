"""The far side of `run --on`: makes a machine ready for workers, waits, and leaves nothing of them when they are gone.

Its text is sent to the machine's own Python, as root (lab.machines.session). That machine has nothing of ours yet: it
imports the standard library alone, and must be understood by every Python that a system may have, from 3.7 on.

Its standard input is a line of JSON that says what is wanted, then for each tree that is asked for a line with its
length and the tar file. What comes later only says that there is still somebody there. Standard output is a JSON object
a line: `here` at once, `need`, `say`, then `ready` or `failed`, and at the end `ended`.

All of it is below one directory of root's own:

    environments/KEY/    a copy of the project in which tools/setup has run; the key is of what that depends on
    trees/KEY/           files of the project, or of a suite; the key is of their content, without what Python compiles
    runs/TOKEN/          the directory of a run, locked while it goes on; gone at its end
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

KEPT = {"environments": 2, "trees": 12}
"""How many of each are kept, the last ones used."""

SILENCE = 300
"""Seconds without a word after which nobody is there any more: the connection has broken without an end."""

PATIENCE = 20
"""Seconds that workers have to take their nodes down before they are killed, on a machine that is not a slow one."""

DEATH = 10
"""Seconds after which a process that was killed is told to remain: it waits in the kernel for what does not come."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(Exception):
    """The machine cannot be made ready; the text is for the user."""


def say(**message: Any) -> None:
    """Tell the other side something."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def say_last(**message: Any) -> None:
    """Tell the other side how it ended; if nobody is there any more, what had to be done is done all the same."""
    try:
        say(**message)
    except (BrokenPipeError, ConnectionResetError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def told(error: BaseException, base: str) -> str:
    """Return what the user is told of an error, in one line; what has no name of a file was written below `base`."""
    if not isinstance(error, OSError):
        return str(error)
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        # It has each file that could not be copied: source, target and reason, which names them again.
        said = str(error.args[0][0][2]).partition(": '")[0]
        reason = said.partition("] ")[2] or said
        return f"{base}: {reason}"
    return f"{error.filename or base}: {error.strerror or error}"


def main() -> None:
    """Make the machine ready, and wait for the end."""
    source = sys.stdin.buffer
    wanted = json.loads(source.readline().decode())
    # The connection may end before all of this is done.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    base, token = wanted["base"], wanted["token"]
    say(here=True)
    held: list[int] = []
    try:
        for place in (base, *(os.path.join(base, name) for name in ("environments", "trees", "runs"))):
            own_directory(place)
        with open(os.path.join(base, "lock"), "w") as lock:
            take(lock)
            for left in remove_dead_runs(base):
                say(say=left)
            keep_trees(base, wanted, source, held)
            keep_environment(base, wanted, held)
            remove_old(base)
            # Not later: until it is locked, it looks like one whose process was killed.
            run = begin_run(base, token, wanted, held)
        examined = examine(base, wanted)
        # A session of its own that the other side opens has to become root in the same way.
        examined["sudo"] = "SUDO_UID" in os.environ
        say(ready=examined)
    except (Failed, OSError, ValueError) as error:
        end(base, token)
        say_last(failed=told(error, base))
        return
    wait_for_the_end()
    stop(token, PATIENCE * examined["slowness"])
    try:
        found = list(packets(run))
    finally:
        left = end(base, token)
    for name, content in found:
        say_last(packets=name, content=base64.b64encode(content).decode())
    say_last(ended=left)


def own_directory(path: str) -> None:
    """Make a directory that root alone may look into, or check that it is one."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Failed(f"{path} is not a directory of root's alone: remove it")


def take(lock: IO[str]) -> None:
    """Wait until nobody else makes this machine ready."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(say="waiting for another run that sets it up")
        fcntl.flock(lock, fcntl.LOCK_EX)


def hold(path: str, held: list[int]) -> None:
    """Have nobody remove a directory until this process ends, and note that it was used now."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(path)
    held.append(descriptor)


def keep_trees(base: str, wanted: dict[str, Any], source: BinaryIO, held: list[int]) -> None:
    """Get the trees that are missing."""
    for key in wanted["trees"]:
        place = os.path.join(base, "trees", key)
        if not os.path.isdir(place):
            say(need=key)
            length = int(next_line(source))
            data = source.read(length)
            if len(data) != length:
                raise Failed("the connection ended while files were copied")
            remove(place + ".new")
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                # Ours: written by lab.machines.tree, with plain files alone.
                archive.extractall(place + ".new")
            os.rename(place + ".new", place)
        hold(place, held)


def next_line(source: BinaryIO) -> bytes:
    """Return the next line that says something: empty ones say only that there is still somebody there."""
    while True:
        line = source.readline()
        if not line:
            raise Failed("the connection ended while files were copied")
        if line != b"\n":
            return line


def keep_environment(base: str, wanted: dict[str, Any], held: list[int]) -> None:
    """Run the project's own set-up, unless that has been done for the same requirements.

    It has to be done again if the Python that it was done with is gone, as after an upgrade of the distribution.
    """
    place = os.path.join(base, "environments", wanted["environment"])
    needed = (os.path.join(place, "ready"), interpreter(base, wanted["environment"]))
    if not all(os.path.exists(path) for path in needed):
        say(say="setting up, which takes about a minute and is done once")
        remove(place)
        shutil.copytree(os.path.join(base, "trees", wanted["trees"][0]), place)
        set_up(place, os.path.join(base, "setup.log"))
        open(os.path.join(place, "ready"), "w").close()
    hold(place, held)


def set_up(place: str, log: str) -> None:
    with open(log, "wb") as written:
        # It may ask nobody anything: there is nobody to answer. Nor is it ended early, in the middle of a package.
        code = subprocess.call(
            ["/bin/sh", os.path.join(place, "tools", "setup")],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            cwd=place,
            env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"},
        )
    if code != 0:
        with open(log, errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()] or [f"exit code {code}"]
        said = lines[-1].replace("setup: ", "", 1)
        raise Failed(f"set-up failed: {said}; all it said is there in {log}")


def begin_run(base: str, token: str, wanted: dict[str, Any], held: list[int]) -> str:
    """Make the directory of this run, with the files that its workers read."""
    run = os.path.join(base, "runs", token)
    os.mkdir(run, 0o700)
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    held.append(descriptor)
    for name in ("tmp", "work", "packets"):
        os.mkdir(os.path.join(run, name), 0o700)
    for name, text in wanted["files"].items():
        path = os.path.join(run, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    return run


def examine(base: str, wanted: dict[str, Any]) -> Any:
    """Return what the project itself finds out about this machine."""
    done = subprocess.run(
        [interpreter(base, wanted["environment"]), "-P", "-m", "lab.machines.examine"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd="/",
        env=dict(wanted["variables"], PATH=PATH, HOME="/root", LANG="C.UTF-8"),
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failed(f"reloadlab does not run there: {lines[-1]}")
    return json.loads(done.stdout.decode())


def interpreter(base: str, environment: str) -> str:
    return os.path.join(base, "environments", environment, ".venv", "bin", "python")


def wait_for_the_end() -> None:
    """Return when the other side ends the connection, or nothing has come from it for long."""
    try:
        while select.select([0], [], [], SILENCE)[0]:
            if not os.read(0, 4096):
                return
    except ConnectionResetError:
        # The server was killed with something of ours unread: what it gave us are sockets.
        return


def labs_of(token: str) -> str:
    """Return the directory of the labs of a run; its workers have it in their environment, by which they are known."""
    return "/run/reloadlab-" + token


def packets(run: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of packets that the workers have written, each with its name."""
    directory = os.path.join(run, "packets")
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb") as file:
                yield name, file.read()


def end(base: str, token: str) -> str:
    """End what is left of a run, and remove its labs and files; return what remains in words, or nothing.

    If something remains, so does the directory of the run: by it, the next run tries again.
    """
    remaining = stop(token)
    if remaining:
        return f"processes remain that SIGKILL does not end: {', '.join(map(str, remaining))}"
    run = os.path.join(base, "runs", token)
    left = remove_labs(token, run) if os.path.isdir(labs_of(token)) else ""
    if not left:
        remove(run)
    return left


def remove(path: str) -> None:
    """Remove a directory with all that is in it; nothing happens if there is none."""
    if os.path.lexists(path):
        shutil.rmtree(path)


def remove_labs(token: str, run: str) -> str:
    """Take down the labs of a run with the project that made them; return what remains in words, or nothing."""
    remain = f"labs remain in {labs_of(token)}: "
    try:
        with open(os.path.join(run, "python")) as file:
            python, tree = file.read().split("\n")[:2]
        done = subprocess.run(
            [python, "-P", "-m", "lab.cli.main", "down", "--all", "--force"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            cwd="/",
            env={"PATH": PATH, "PYTHONPATH": tree, "RELOADLAB_RUN": labs_of(token), "LANG": "C.UTF-8"},
        )
    except FileNotFoundError as error:
        # The environment was removed by hand: no reason to refuse every run from now on.
        return remain + str(error)
    if done.returncode != 0:
        return remain + done.stdout.decode(errors="replace").strip()
    remove(labs_of(token))
    return ""


def stop(token: str, patience: float = PATIENCE) -> list[int]:
    """Interrupt the workers of a run, wait for them, kill what remains; return what even then does not end."""
    begin, known = time.monotonic(), workers(token)
    for pid, parent in known.items():
        # Their children hear of it from them.
        if parent not in known:
            send(pid, signal.SIGINT)
    while known and time.monotonic() - begin < patience:
        time.sleep(0.05)
        known = workers(token)
    begin = time.monotonic()
    while known and time.monotonic() - begin < DEATH:
        for pid in known:
            send(pid, signal.SIGKILL)
        time.sleep(0.05)
        known = workers(token)
    return sorted(known)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def workers(token: str) -> dict[int, int]:
    """Return the processes of a run that live, each with its parent."""
    mark = ("RELOADLAB_RUN=" + labs_of(token)).encode()
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            # Not of ours, which are root's in the same container: such as the first process there.
            continue
        if state != b"Z":
            found[int(name)] = int(parent)
    return found


def remove_dead_runs(base: str) -> list[str]:
    """Remove what is left of runs whose process here was killed; return what remains of them in words."""
    found: list[str] = []
    for token in os.listdir(os.path.join(base, "runs")):
        try:
            descriptor = os.open(os.path.join(base, "runs", token), os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            # One that has just come to its end.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            found.append(end(base, token))
        finally:
            os.close(descriptor)
    return [left for left in found if left]


def remove_old(base: str) -> None:
    """Remove the environments and trees that were not used for the longest time, but those in use."""
    for kind, number in KEPT.items():
        places = [os.path.join(base, kind, name) for name in os.listdir(os.path.join(base, kind))]
        places.sort(key=lambda place: os.stat(place).st_mtime, reverse=True)
        for place in places[number:]:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(place)
            finally:
                os.close(descriptor)


if __name__ == "__main__":
    main()

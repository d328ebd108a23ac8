from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.agent.cluster import build, cluster_specs
from lab.cli.main import main
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.netns import inode
from tests.lab.labs import ROOT, cli, start, unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        yield node


def run(*argv: str) -> tuple[int, str, str]:
    with start(cli("exec", *argv)) as process:
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("place", "namespace"),
    [("/pod-1", "pod-1"), ("/health", "health"), ("/outside", "outside"), ("/host", "node"), ("", "node")],
)
def test_command_runs_inside(node: Node, place: str, namespace: str) -> None:
    wanted = f"net:[{inode(node.netns(namespace))}]\n"
    assert run(f"{node.name}{place}", "--", "readlink", "/proc/self/ns/net") == (0, wanted, "")


def test_exit_code_and_output_are_the_commands(node: Node) -> None:
    code = "echo out; echo err >&2; exit 7"
    assert run(f"{node.name}/pod-1", "--", "sh", "-c", code) == (7, "out\n", "err\n")


def test_options_belong_to_the_command(node: Node) -> None:
    assert run(f"{node.name}/pod-1", "echo", "--help", "--", "-x") == (0, "--help -- -x\n", "")


def test_nothing_of_ours_is_inherited(node: Node) -> None:
    returncode, out, _ = run(f"{node.name}/pod-1", "--", "ls", "/proc/self/fd")
    # Standard streams, and the directory that ls has open.
    assert (returncode, out.split()) == (0, ["0", "1", "2", "3"])


def test_running_command_does_not_keep_the_lab() -> None:
    node = Node.up(NodeSpec(unique_name(), pods=1))
    with start(cli("exec", f"{node.name}/pod-1", "--", "sh", "-c", "echo; exec sleep 20")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        subprocess.run(cli("down", node.name), check=True, capture_output=True, timeout=30)
        assert process.wait(timeout=5) == -9


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("{lab}/pod-9 -- true", 1, "lab {lab} has no pod-9; it has host, health, outside, pod-1"),
        ("{lab}/a/b -- true", 2, "invalid target"),
        ("no-such-lab/pod-1 -- true", 1, "no lab no-such-lab; the labs are: "),
        ("../pod-1 -- true", 2, "invalid lab name '..'"),
    ],
)
def test_bad_arguments(node: Node, command: str, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", *command.format(lab=node.name).split()]) == code
    err = capsys.readouterr().err
    assert words.format(lab=node.name) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("no-such-command", 127, "reloadlab: no-such-command: No such file or directory\n"),
        ("/etc/passwd", 126, "reloadlab: /etc/passwd: Permission denied\n"),
    ],
)
def test_command_that_cannot_be_run(node: Node, command: str, code: int, words: str) -> None:
    assert run(f"{node.name}/pod-1", "--", command) == (code, "", words)


def test_one_node_of_a_cluster_is_named() -> None:
    name = unique_name()[:29]
    try:
        build(cluster_specs(name, 2, pods=1))
        words = f"{name} is a cluster of 2 nodes; name one of: {name}-1/pod-1, {name}-2/pod-1\n"
        assert run(f"{name}/pod-1", "--", "true") == (1, "", f"reloadlab: {words}")
        assert run(f"{name}-2/pod-1", "--", "true") == (0, "", "")
    finally:
        for member in registry.members(name):
            registry.remove(member, force=True)


# What the command finds


def test_sysfs_is_that_of_the_namespace(node: Node) -> None:
    for place, interfaces in (("/pod-1", {"lo", "eth0"}), ("/outside", {"lo", "eth0"})):
        code, out, err = run(f"{node.name}{place}", "--", "ls", "/sys/class/net")
        assert (code, err) == (0, "")
        assert set(out.split()) == interfaces
    _, out, _ = run(node.name, "--", "ls", "/sys/class/net")
    assert {"cilium_host", "cilium_net", "eth0"} <= set(out.split())


def test_bpffs_is_the_nodes(node: Node) -> None:
    pin = node.root / registry.BPFFS / "mark"
    pin.mkdir()
    try:
        assert run(f"{node.name}/pod-1", "--", "find", "/sys/fs/bpf", "-name", "mark") == (0, "/sys/fs/bpf/mark\n", "")
        script = "stat -f -c %T /sys/fs/bpf; rmdir /sys/fs/bpf/mark"
        assert run(node.name, "--", "sh", "-c", script) == (0, "bpf_fs\n", "")
        assert not pin.exists()
    finally:
        if pin.exists():
            pin.rmdir()


def test_the_machine_keeps_its_mounts(node: Node) -> None:
    before = mounts()
    script = "mount -t tmpfs none /mnt && grep -c ' /sys ' /proc/self/mountinfo"
    code, out, _ = run(node.name, "--", "sh", "-c", script)
    assert (code, int(out) >= 1) == (0, True)
    assert mounts() == before


def mounts() -> list[str]:
    """Return the mounts of this mount namespace, without those of labs and of other tests, which come and go."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if not point.startswith(("/run/", f"{tempfile.gettempdir()}/"))]


def test_other_file_systems_below_sysfs_stay(node: Node) -> None:
    wanted = {point for point in mounts() if point.startswith("/sys/") and not point.startswith("/sys/fs/bpf")}
    _, out, _ = run(node.name, "--", "cat", "/proc/self/mountinfo")
    assert wanted <= {line.split()[4] for line in out.splitlines()}


def test_signals_are_as_a_shell_leaves_them(node: Node) -> None:
    """Python ignores SIGPIPE and SIGXFSZ; a program that writes to a pipe without a reader must end, not complain."""
    assert run(f"{node.name}/pod-1", "--", "sh", "-c", "yes | head -n1") == (0, "y\n", "")
    _, out, _ = run(f"{node.name}/pod-1", "--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(out.split()[1], 16)
    assert [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored & 1 << number - 1] == []


# A shell


@pytest.mark.parametrize(("shell", "wanted"), [("/bin/bash", "bash"), (None, "sh"), ("", "sh")])
def test_without_a_command_it_is_a_shell(node: Node, shell: str | None, wanted: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SHELL"}
    environment |= {"SHELL": shell} if shell is not None else {}
    done = subprocess.run(
        cli("exec", f"{node.name}/pod-1"),
        cwd=ROOT,
        env=environment,
        input="cat /proc/$$/comm; ls /sys/class/net; exit 5\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (5, [wanted, "eth0", "lo"], "")


def test_job_control_works_in_an_interactive_shell(node: Node) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        argv = [sys.executable, "-m", "lab.cli.main", "exec", f"{node.name}/pod-1", "--"]
        os.execv(sys.executable, [*argv, "bash", "--norc", "--noediting", "-i"])
    try:
        said = ""
        for line, answer in (
            ("PS1='ready '; set -o | grep monitor", "monitor        \ton"),
            ("sleep 60", ""),
            ("\x1a", "Stopped"),
            ("bg %1", "sleep 60 &"),
            ("kill %1; wait %1; jobs", "Terminated"),
            ("exit 3", "exit"),
        ):
            os.write(terminal, line.encode() if line == "\x1a" else f"{line}\n".encode())
            if line == "sleep 60":
                await_child(child)
            said = read_until(terminal, answer)
            assert answer in said
        assert "no job control" not in said
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    finally:
        os.close(terminal)


def read_until(terminal: int, words: str) -> str:
    """Return what the terminal shows up to these words."""
    shown = ""
    deadline = time.monotonic() + 20
    while words not in shown:
        assert time.monotonic() < deadline, shown
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError as error:
            if error.errno != errno.EIO:  # the shell has gone
                raise
            break
    return shown


def await_child(shell: int) -> None:
    """Wait until the shell has started its command."""
    deadline = time.monotonic() + 20
    while "sleep" not in {
        Path(f"/proc/{pid}/comm").read_text().strip()
        for pid in Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    }:
        assert time.monotonic() < deadline
        time.sleep(0.01)

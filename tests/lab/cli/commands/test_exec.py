from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.netns import inode
from tests.lab.labs import cli, start, unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        yield node


def run(*argv: str) -> tuple[int, str, str]:
    with start(cli("exec", *argv)) as process:
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("name", ["pod-1", "node", "health", "outside"])
def test_command_runs_inside(node: Node, name: str) -> None:
    wanted = f"net:[{inode(node.netns(name))}]\n"
    assert run(f"{node.name}/{name}", "--", "readlink", "/proc/self/ns/net") == (0, wanted, "")


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
        ("{lab}/pod-9 -- true", 1, "lab {lab} has no pod-9; it has node, health, outside, pod-1"),
        ("{lab} -- true", 1, "invalid target '{lab}'"),
        ("{lab}/a/b -- true", 1, "invalid target"),
        ("no-such-lab/pod-1 -- true", 1, "no lab no-such-lab; there is "),
        ("../pod-1 -- true", 1, "invalid lab name '..'"),
        ("{lab}/pod-1", 1, "no command"),
        ("{lab}/pod-1 -- no-such-command", 127, "no-such-command: No such file"),
        ("{lab}/pod-1 -- /etc/passwd", 126, "/etc/passwd: Permission denied"),
    ],
)
def test_bad_arguments(node: Node, command: str, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", *command.format(lab=node.name).split()]) == code
    err = capsys.readouterr().err
    assert words.format(lab=node.name) in err
    assert err.count("\n") == 1

"""`reloadlab exec`: run a command, or a shell, inside a pod, the node, the health endpoint or the world outside."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from datapath.errors import ReloadlabError
from lab.cli.completion import complete_namespaces
from lab.cli.targets import SeveralNodes, add_targets, check_targets, find_targets
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of a shell for a command that cannot be run, or is not there."""


class CannotRun(ReloadlabError):
    """A command that cannot be executed; `code` is the exit code of a shell in its place."""

    def __init__(self, command: str, error: OSError) -> None:
        super().__init__(f"{command}: {error.strerror}")
        self.code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "exec",
        usage="reloadlab exec LAB[/ENDPOINT] [-- COMMAND ...]",
        description="Run a command in the network namespace of an endpoint, a shell if no command is given. LAB/pod-1 "
        "is a pod; LAB, or LAB/host, the node itself; LAB/health and LAB/outside are the health endpoint and the world "
        "outside. /sys is that of the namespace, /sys/fs/bpf the node's BPF file system. "
        "The exit code is the command's.",
    )
    add_targets(parser, completer=complete_namespaces, help="where the command runs, such as demo/pod-1")
    command = parser.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments ($SHELL, /bin/sh)"
    )
    # argparse would name it among what is missing.
    command.required = False
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become the command; returns only if it cannot be run."""
    check_targets([args.target])
    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    require("root")
    path, bpffs, lock = _find(args.target)
    # The lock is not handed on: whoever removes the lab also ends what runs inside.
    with lock, _inside(path):
        try:
            _become(argv or [os.environ.get("SHELL") or "/bin/sh"], bpffs)
        except CannotRun as error:
            print(f"reloadlab: {error}", file=sys.stderr)
            return error.code


def _find(text: str) -> tuple[Path, Path, AbstractContextManager[None]]:
    """Return the network namespace that a target names, its node's BPF file system, and the lock of the lab."""
    from lab.node import registry
    from lab.node.node import UnknownTarget
    from lab.node.topology import HOST, NODE

    targets = find_targets([text])
    if len(targets) > 1:
        cluster, _, endpoint = text.partition("/")
        raise SeveralNodes(cluster, [target.node.name for target in targets], endpoint or HOST)
    node, name = targets[0].node, targets[0].endpoint or HOST
    if name not in (HOST, *node.namespaces):
        raise UnknownTarget(node.name, name, (HOST, *(known for known in node.namespaces if known != NODE)))
    path = node.netns(NODE if name == HOST else name)
    return path, node.root / registry.BPFFS, node.lock_shared()


def _inside(path: Path) -> AbstractContextManager[None]:
    """Put this process into a namespace: its main thread, which is the only one and the one nsenter leaves for."""
    import nsenter  # for this command alone

    from lab.system.netns import NamespaceNotFound

    try:
        namespace: AbstractContextManager[None] = nsenter.Namespace(str(path), "net")
    except FileNotFoundError as error:
        raise NamespaceNotFound(path) from error
    return namespace


def _become(argv: list[str], bpffs: Path) -> NoReturn:
    """Execute the command, in a mount namespace of its own, with the signals as a shell would leave them."""
    from lab.system.mounts import leave_mount_namespace, replace_sysfs

    leave_mount_namespace()
    replace_sysfs(bpffs)
    # Python ignores these two, and what is ignored stays ignored in the command.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise CannotRun(argv[0], error) from error

"""A lab's own policies, kept on disk while others hold for a time: a process that is killed meanwhile loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.base.locks import Lock
from datapath.base.statefile import DamagedFile, read_json, write_json
from datapath.errors import ReloadlabError
from lab.agent import enforcement
from lab.errors import system_errors
from lab.node import registry
from lab.node.node import Node

if TYPE_CHECKING:
    from lab.agent.agent import Agent

_FILE, _LOCK = "policies.aside.json", "policies.aside.lock"


class PoliciesInUse(ReloadlabError):
    """A lab whose policies another process has put aside."""

    def __init__(self, node: str) -> None:
        super().__init__(f"{node} is being upgraded by another process, under policies of its own: wait until it ends")
        self.node = node


@contextmanager
def put_aside(node: Node) -> Iterator[None]:
    """Keep the policies of a node on disk while others hold; PoliciesInUse if another process does.

    What a killed process has put aside is kept: the policies that hold are not the node's own then. Before the block
    ends, `take_back` lets them hold again.
    """
    with _locked(node) as mine:
        if not mine:
            raise PoliciesInUse(node.name)
        if not _path(node).exists():
            with system_errors(node.name):
                write_json(_path(node), {"policies": enforcement.document_of(node)})
        yield


def take_back(agent: Agent) -> None:
    """Let the policies hold again that were put aside, if any were."""
    path = _path(agent.node)
    with agent.updating():
        try:
            kept = read_json(path)
        except FileNotFoundError:
            return
        if not isinstance(kept, dict) or "policies" not in kept:
            raise DamagedFile(path, "it has no policies")
        agent.put_back_policies(kept["policies"])
        path.unlink()


def recover(agent: Agent) -> None:
    """Let the policies hold again that a process has put aside which was killed."""
    # Nearly always there are none, and nothing is locked.
    if _path(agent.node).exists():
        with _locked(agent.node) as mine:
            if mine:
                take_back(agent)


@contextmanager
def forgotten(node: Node) -> Iterator[None]:
    """Drop the policies that a killed process has put aside, once the block has given others instead of them.

    PoliciesInUse if the process that has put them aside lives: they would replace what is given here when it ends.
    """
    if not _path(node).exists():
        yield
        return
    with _locked(node) as mine:
        if not mine:
            raise PoliciesInUse(node.name)
        yield
        _path(node).unlink(missing_ok=True)


@contextmanager
def _locked(node: Node) -> Iterator[bool]:
    """Hold the lock of those who put policies aside; yield False if another has it."""
    with system_errors(node.name):
        lock = Lock(node.root / registry.STATE / _LOCK, threading.Event())
    try:
        yield lock.try_acquire()
    finally:
        lock.close()


def _path(node: Node) -> Path:
    return node.root / registry.STATE / _FILE

"""Entering a network namespace for as long as it takes to open a socket in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nsenter

from datapath.errors import ReloadlabError


class NamespaceNotFound(ReloadlabError):
    """A network namespace that is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"network namespace {path} does not exist")
        self.path = path


@contextmanager
def enter(netns: Path) -> Iterator[None]:
    """Put the calling thread into the namespace at `netns`; it leaves to the namespace of the process's main thread.

    A socket opened inside stays bound to the namespace after the thread has left. Every setns(2) is checked.
    """
    try:
        namespace = nsenter.Namespace(str(netns), "net")
    except OSError as error:
        raise NamespaceNotFound(netns) from error
    with namespace:
        yield

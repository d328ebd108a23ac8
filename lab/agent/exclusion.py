"""What must not happen to a node at the same time, in whatever process: reloads, updates of the maps, and switches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Unpack

from datapath.errors import Cancelled, ReloadlabError
from lab.agent.managed import ManagedNode, NodeOptions
from lab.agent.subjectlock import lock_subject
from lab.agent.turns import Turn
from lab.errors import system_errors
from lab.node.node import Node


class NestedReload(ReloadlabError):
    """A reload that was asked for at a gate of another reload by the same thread, which would wait for itself."""

    def __init__(self, subject: str, outer: str) -> None:
        super().__init__(f"{subject} cannot be reloaded at a gate of {outer}'s reload: do it after")
        self.subject = subject
        self.outer = outer


class ExclusiveNode(ManagedNode):
    """A node with its locks; who has one knows the node as it is."""

    def __init__(self, node: Node, **options: Unpack[NodeOptions]) -> None:
        super().__init__(node, **options)
        self._maps_holders: list[int] = []
        self._reloads: dict[int, str] = {}
        # Shared by reloads, held exclusively while a setting changes that all programs of the node are built with.
        self._mode = Turn(self.config.state / "mode.lock")

    @contextmanager
    def reloading(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Exclude switches of this node, and read its present state."""
        with system_errors(self.node.name), self._mode.take(exclusive=False, cancel=cancel):
            self._refresh()
            yield

    @contextmanager
    def updating(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Exclude updates and reloads, in whatever process, that would change this node's maps.

        It may be nested. In a thread that is reloading, at a gate say, it takes no lock: it would wait for itself.
        """
        with system_errors(self.node.name), ExitStack() as stack:
            if threading.get_ident() not in self._maps_holders:
                # Nobody waits for the compiler but us.
                self.host_spec(cancel=cancel)
                stack.enter_context(self.loader.lock_maps(cancel=cancel))
                self._refresh()
            stack.enter_context(self._holding_maps())
            yield

    @contextmanager
    def switching(self, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Exclude reloads and switches by others, while everything is reloaded for a new mode.

        Cancelled if `cancel` is set by the time it is this one's turn: the node has not been changed yet.
        """
        with system_errors(self.node.name), self._mode.take(exclusive=True, cancel=cancel):
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"cancelled before anything of {self.node.name} was changed")
            self._refresh()
            yield
            # Whoever switches it next changes what this one has made of it.
            self._refresh()

    @contextmanager
    def reloading_subject(self, subject: str, *, cancel: threading.Event | None = None) -> Iterator[None]:
        """Exclude switches of this node, and other reloads of a subject: it is planned within, as it is then.

        It waits for them. NestedReload at a gate of a reload.
        """
        with (
            self._not_nested(subject),
            system_errors(self.node.name),
            self._mode.take(exclusive=False, cancel=cancel),
            lock_subject(self.loader, self.node, subject, self._refresh, cancel),
        ):
            yield

    @contextmanager
    def _holding_maps(self) -> Iterator[None]:
        self._maps_holders.append(threading.get_ident())
        try:
            yield
        finally:
            self._maps_holders.remove(threading.get_ident())

    @contextmanager
    def _not_nested(self, subject: str) -> Iterator[None]:
        """Refuse a reload from within a reload by the calling thread, which holds locks that the other would take."""
        thread = threading.get_ident()
        if thread in self._reloads:
            raise NestedReload(subject, self._reloads[thread])
        self._reloads[thread] = subject
        try:
            yield
        finally:
            del self._reloads[thread]

    @contextmanager
    def at_gate_of(self, subject: str) -> Iterator[None]:
        """Count the calling thread as the one that reloads `subject`, which a copy of this agent does (do_in_worker).

        That one waits meanwhile, with its locks. NestedReload within it, as at a gate of a reload in this process.
        """
        with self._not_nested(subject), self._holding_maps():
            yield

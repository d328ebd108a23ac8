"""The lock of what is reloaded: with it, one knows the node as it is, and not as it was before the wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datapath.loader import Loader
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from lab.node.node import Node, UnknownTarget


@contextmanager
def lock_subject(
    loader: Loader, node: Node, subject: str, refresh: Callable[[], None], cancel: threading.Event | None
) -> Iterator[None]:
    """Hold the lock of a subject's endpoint; UnknownTarget if the endpoint is gone when the lock is there.

    `refresh` reads what others have changed of the node.
    """
    try:
        number = _number(node, subject)
    except UnknownTarget:
        refresh()
        number = _number(node, subject)
    while True:
        with loader.lock_endpoint(number, cancel=cancel):
            refresh()
            try:
                now = _number(node, subject)
            except UnknownTarget:
                loader.drop_lock(number)
                raise
            if now == number:
                yield
                return
            # A pod that was made anew under its name.
            number = now


def _number(node: Node, subject: str) -> int:
    """Return the number of a subject's endpoint; 0 for one that has none."""
    return 0 if subject in (OVERLAY_SUBJECT, XDP_SUBJECT) else node.endpoint(subject).id

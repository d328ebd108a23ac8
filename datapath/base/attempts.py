"""Doing several things of which each is to be attempted, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datapath.errors import SeveralErrors

Attempt = Callable[[Callable[[], object]], None]


@contextmanager
def each() -> Iterator[Attempt]:
    """Give a function that calls what it gets and remembers how it failed, and raise that when the block ends.

    One failure is raised as it is, several as SeveralErrors.
    """
    errors: list[Exception] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - raised when the block ends
            errors.append(error)

    yield attempt
    if len(errors) > 1:
        raise SeveralErrors(errors)
    if errors:
        raise errors[0]

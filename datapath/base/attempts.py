"""Run several actions; each is attempted even if others fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from datapath.errors import SeveralErrors

Attempt = Callable[[Callable[[], object]], None]


@contextmanager
def each() -> Iterator[Attempt]:
    """Give a function that calls an action and remembers how it failed; raise that when the block ends.

    One failure is raised as it is, several as SeveralErrors. An interruption of an action (KeyboardInterrupt) is raised
    when the block ends as well. It then has the failures as notes, and so has what the block itself raises.
    """
    errors: list[Exception] = []
    interruptions: list[BaseException] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - raised when the block ends
            errors.append(error)
        except BaseException as error:  # noqa: BLE001 - raised when the block ends
            interruptions.append(error)

    try:
        yield attempt
    except BaseException as error:
        _add_notes(error, (*interruptions, *errors))
        raise
    if interruptions:
        _add_notes(interruptions[0], (*interruptions[1:], *errors))
        raise interruptions[0]
    if len(errors) > 1:
        raise SeveralErrors(errors)
    if errors:
        raise errors[0]


def _add_notes(error: BaseException, others: Iterable[BaseException]) -> None:
    for other in others:
        error.add_note(f"also failed: {str(other) or type(other).__name__}")

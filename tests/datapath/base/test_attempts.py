"""attempts.py: one failure keeps nothing else from being done, and none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from datapath.base.attempts import each
from datapath.errors import BpfError, SeveralErrors


def fail(error: BaseException) -> None:
    raise error


def attempt_all(*actions: Callable[[], object]) -> None:
    with each() as attempt:
        for action in actions:
            attempt(action)


def test_everything_is_attempted() -> None:
    done: list[int] = []
    first, second = OSError(1, "no"), BpfError("BPF_OBJ_PIN", 17, "taken")
    with pytest.raises(SeveralErrors, match=r"no; BPF_OBJ_PIN: taken") as info:
        attempt_all(lambda: done.append(1), lambda: fail(first), lambda: fail(second), lambda: done.append(2))
    assert done == [1, 2]
    assert info.value.errors == (first, second)


def test_a_single_failure_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="odd"):
        attempt_all(lambda: fail(ValueError("odd")))
    attempt_all(lambda: None)


def test_an_interruption_is_raised_when_everything_is_attempted() -> None:
    later: list[int] = []
    with pytest.raises(KeyboardInterrupt) as info:
        attempt_all(lambda: fail(OSError(1, "no")), lambda: fail(KeyboardInterrupt()), lambda: later.append(1))
    assert later == [1]
    assert info.value.__notes__ == ["also failed: [Errno 1] no"]


def test_what_the_block_raises_has_the_failures_as_notes() -> None:
    def block() -> None:
        with each() as attempt:
            attempt(lambda: fail(OSError(1, "no")))
            attempt(lambda: fail(KeyboardInterrupt()))
            raise ValueError("odd")

    with pytest.raises(ValueError, match="odd") as info:
        block()
    assert info.value.__notes__ == ["also failed: KeyboardInterrupt", "also failed: [Errno 1] no"]

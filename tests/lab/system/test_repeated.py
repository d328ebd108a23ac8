"""What ends a thread that repeats something is heard, whoever asks."""

from __future__ import annotations

import threading

import pytest

from lab.system.repeated import Repeated


class Broken(Exception):
    """Our own error."""


def broken(raised: threading.Event) -> None:
    raised.set()
    raise Broken


def test_it_is_repeated_until_the_end() -> None:
    again = threading.Semaphore(0)
    with Repeated("test", again.release, interval=0.001) as repeated:
        for _ in range(3):
            assert again.acquire(timeout=10)
        repeated.check()
        assert repeated.error is None


def test_what_ends_it_is_raised_when_the_context_is_left() -> None:
    raised = threading.Event()
    with pytest.raises(Broken), Repeated("test", lambda: broken(raised), interval=0.001):
        assert raised.wait(10)


def test_what_was_heard_of_is_not_raised_once_more() -> None:
    raised = threading.Event()
    with Repeated("test", lambda: broken(raised), interval=0.001) as repeated:
        assert raised.wait(10)
        while threading.active_count() > 1 and repeated.error is None:
            pass
        with pytest.raises(Broken):
            repeated.check()


def test_it_does_not_hide_another_error() -> None:
    raised = threading.Event()
    repeated = Repeated("test", lambda: broken(raised), interval=0.001).__enter__()
    assert raised.wait(10)
    error = KeyError()
    repeated.__exit__(KeyError, error, None)
    assert isinstance(repeated.error, Broken)

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from datapath.reload.interrupts import SIGNALS, signals_held_back


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Return the numbers of the signals whose handlers have run."""
    numbers: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        numbers.append(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    yield numbers
    for number, old in before.items():
        signal.signal(number, old)


def test_handlers_run_when_the_block_has_ended(handled: list[int]) -> None:
    with signals_held_back():
        for number in (*SIGNALS, *SIGNALS):
            os.kill(os.getpid(), number)
        assert handled == []
    assert sorted(handled) == sorted(SIGNALS)
    os.kill(os.getpid(), signal.SIGINT)
    assert len(handled) == len(SIGNALS) + 1, "the handler is not back in its place"


def test_ctrl_c_is_raised_after_the_block() -> None:
    done = []

    def work() -> None:
        with signals_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_an_exception_of_the_block_stays_the_context() -> None:
    def work() -> None:
        with signals_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt) as info:
        work()
    assert isinstance(info.value.__context__, ValueError)


def test_ignored_signals_stay_ignored(handled: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals_held_back():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_another_thread_touches_no_handler(handled: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    inside: list[object] = []

    def work() -> None:
        with signals_held_back():
            inside.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == before

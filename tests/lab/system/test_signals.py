from __future__ import annotations

import os
import signal
import threading

import pytest

from lab.system.signals import SIGNALS, SignalEvent, cancel_on_signals, terminable

each_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@each_signal
def test_terminable_unwinds(number: signal.Signals) -> None:
    before = handlers()
    undone = []
    with pytest.raises(KeyboardInterrupt), terminable():  # noqa: PT012
        try:
            os.kill(os.getpid(), number)
        finally:
            undone.append(number)
    assert undone == [number]
    assert handlers() == before


@each_signal
def test_cancellation_interrupts_nothing_half_way(number: signal.Signals) -> None:
    before = handlers()
    done = []
    with pytest.raises(KeyboardInterrupt), cancel_on_signals() as cancel:  # noqa: PT012 - the end of the block raises
        assert not cancel.is_set()
        os.kill(os.getpid(), number)
        done.append(cancel.wait(5))
    assert done == [True]
    assert handlers() == before


def test_cancellation_wins_over_what_it_caused() -> None:
    with pytest.raises(KeyboardInterrupt), cancel_on_signals():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError


def test_nothing_happens_without_a_signal() -> None:
    with terminable(), cancel_on_signals() as cancel:
        pass
    assert not cancel.is_set()


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable(), cancel_on_signals() as cancel:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not cancel.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_event_is_seen_by_other_threads() -> None:
    event = SignalEvent()
    assert not event.wait(0.001)
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(event.wait(5)))
    thread.start()
    event.set()
    thread.join(5)
    assert seen == [True]
    event.clear()
    assert not event.is_set()

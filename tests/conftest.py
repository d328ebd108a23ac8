"""What all tests need: signals that arrive."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C through even if whoever started the tests has it ignored (a background job, nohup, some CI).

    A process inherits that, and so would every command that a test starts in order to interrupt it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

"""A companion for tests: it tells what it has of its parent, or fails."""

from __future__ import annotations

import os
import signal
import sys

from lab.system.companion import Control
from lab.system.signals import SIGNALS


def main(descriptor: int) -> int:
    """Answer what the first message asks for."""
    control = Control(descriptor)
    message = control.receive()
    if message is None:
        return 1
    if message["do"] == "fail":
        print("printed to nobody")
        raise RuntimeError("out of order")
    opened = {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    control.send(
        {
            "opened": opened,
            "control": descriptor,
            "session": os.getsid(0),
            "handlers": [signal.getsignal(number) is signal.SIG_DFL for number in SIGNALS],
            "blocked": [int(number) for number in blocked],
            "argv": sys.argv[0],
        }
    )
    return 0


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")

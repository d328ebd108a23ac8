"""What an agent does in a process of its own while every system call of it is decided on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from lab.agent.reloader import Reloader
from lab.agent.reloads import do_in_worker
from lab.gates.forked import gated
from lab.gates.supervisor import Decide
from lab.node import registry

R = TypeVar("R")


def under_gates(
    reloader: Reloader,
    do: Callable[[threading.Event], R],
    decide: Decide,
    *,
    cancel: threading.Event | None = None,
    look_ups: bool = True,
) -> R:
    """Do something with a copy of `reloader`, and have each call below its node's state and pins decided on.

    Without `look_ups`, single look-ups of maps are not stopped.

    `do` gets the event that cancels it. `decide` is called in a thread of this process. Raises what `do` raised,
    WorkerDied if the process was killed, and what `decide` raised, which ends the gates: the calls that are left fail
    with ENOSYS.
    """
    pins = reloader.config.globals
    with gated(decide, directories=[reloader.node.root / registry.STATE, pins], pins=pins, look_ups=look_ups) as enter:
        return do_in_worker(reloader, do, on_worker=enter, cancel=cancel)

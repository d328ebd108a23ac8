"""What an agent does in a process of its own while every system call of it is decided on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from lab.agent.reloader import Reloader
from lab.agent.reloads import do_in_worker
from lab.gates.call import Call
from lab.gates.forked import gated
from lab.gates.supervisor import Answer, Decide
from lab.node import registry
from lab.system.mounts import SYSFS_BPF

R = TypeVar("R")


def under_gates(
    reloader: Reloader,
    do: Callable[[threading.Event], R],
    decide: Decide,
    *,
    cancel: threading.Event | None = None,
    look_ups: bool = True,
    receives: bool = False,
    forked: bool = False,
) -> R:
    """Do something with a copy of `reloader`, and have its calls decided on.

    Of files those below its node's state and pins, and below the reloader's `gated`.

    If another loader than ours loads, the calls are those of its process alone, and `do` is done here; `forked`: that
    too is done by a process of its own, whose calls are decided on as well as those of the loader that it starts.
    Without `look_ups`, single look-ups of maps are not stopped; with `receives`, what is read from netlink sockets is.

    `do` gets the event that cancels it. `decide` is called in a thread of this process. Raises what `do` raised,
    WorkerDied or LoaderDied if the process was killed, and what `decide` raised, which ends the gates: the calls that
    are left fail with ENOSYS.
    """
    config, external = reloader.config, reloader.external
    pins, links = config.globals, config.links
    # That of sysfs is the name of the pins in the process of a loader.
    directories = [reloader.node.root / registry.STATE, pins, links, SYSFS_BPF, *reloader.gated]
    if external is None or forked:
        with gated(decide, directories=directories, pins=pins, look_ups=look_ups, receives=receives) as enter:
            return do_in_worker(reloader, do, on_worker=enter, cancel=cancel)

    def without_haste(call: Call) -> Answer:
        try:
            return decide(call)
        finally:
            external.touch()

    with (
        gated(without_haste, directories=directories, pins=pins, look_ups=look_ups, receives=receives) as enter,
        external.gated(enter),
    ):
        return do(cancel or threading.Event())

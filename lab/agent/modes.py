"""Switches of a whole live node: everything is reloaded for another routing mode, tunnel port or MTU."""

from __future__ import annotations

import errno
import threading
from dataclasses import replace

from datapath.endpoint import XdpMode
from datapath.errors import NetlinkError
from datapath.reload.outcome import Outcome
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from datapath.reload.step import Step
from datapath.reload.transaction import Observer
from datapath.reload.workspace import Workspace
from lab.agent.reloader import Reloader
from lab.agent.unchecked import unchecked_pods
from lab.node.topology import InvalidSpec


class _Watched:
    """An observer that tells whether a reload has passed its commit, also if it has failed since."""

    def __init__(self) -> None:
        self._work: Workspace | None = None

    @property
    def is_committed(self) -> bool:
        return self._work is not None and self._work.committed

    def before(self, step: Step, work: Workspace) -> None:
        self._work = work

    def after(self, step: Step, work: Workspace) -> None:
        pass


def set_endpoint_routes(
    reloader: Reloader, on: bool, *, workers: int, cancel: threading.Event | None, observer: Observer | None
) -> list[Outcome]:
    """Switch to the other routing mode, without a moment in which a pod has no route.

    The node's route to its pods stays until the last pod has one of its own, and is back before the first loses it.
    The node says so last: what is interrupted is ended by the next reload of everything, in the mode before.
    """
    node = reloader.node
    with reloader.switching(cancel=cancel):
        before = reloader.endpoint_routes
        # Before anything is done: not every node can have them (InvalidSpec).
        replace(node.spec, endpoint_routes=on)
        if not on:
            node.set_node_route(True)
        reloader.configure(node=replace(reloader.config.node, endpoint_routes=on))
        try:
            outcomes = reloader.reload_all(workers=workers, cancel=cancel, observer=observer)
            node.set_endpoint_routes(on)
        except BaseException:
            reloader.configure(node=replace(reloader.config.node, endpoint_routes=before))
            raise
    return outcomes


def set_xdp(reloader: Reloader, mode: XdpMode | None, *, cancel: threading.Event | None) -> Outcome:
    """Attach the devices' XDP programs in another mode, or remove them all (None).

    The node says so first, and last that there are none: whatever kills this, the next reload knows what there may be.
    What fails after the commit of the reload takes nothing back: the devices are in the other mode.
    """
    node, before, reload = reloader.node, reloader.node.spec.xdp_mode, _Watched()
    with reloader.switching(cancel=cancel):
        if mode is not None:
            node.set_xdp(mode)
        reloader.configure(xdp=mode)
        try:
            outcome = reloader.reload(XDP_SUBJECT, observer=reload, cancel=cancel)
        except BaseException:
            if reload.is_committed:
                node.set_xdp(mode)
            else:
                reloader.configure(xdp=before)
                node.set_xdp(before)
            raise
        node.set_xdp(mode)
    return outcome


def set_tunnel_port(reloader: Reloader, port: int, *, workers: int, cancel: threading.Event | None) -> list[Outcome]:
    """Move the tunnel to another UDP port: a new device, and programs that know its index.

    Until all is reloaded nothing goes through the tunnel: the kernel cannot change the port of a device.
    """
    if not reloader.node.spec.tunnel:
        raise InvalidSpec(f"{reloader.node.name} has no tunnel")
    with reloader.switching(cancel=cancel):
        reloader.node.set_tunnel_port(port)
        # The new device first: the others' packets arrive there already.
        first = [] if reloader.endpoint_routes and unchecked_pods(reloader.node) else [OVERLAY_SUBJECT]
        return reloader.reload_all(workers=workers, first=first, cancel=cancel)


def set_mtu(reloader: Reloader, mtu: int, *, workers: int, cancel: threading.Event | None) -> list[Outcome]:
    """Change the MTU, in place; open connections go on."""
    with reloader.switching(cancel=cancel):
        try:
            reloader.node.set_mtu(mtu)
        except NetlinkError as error:
            if error.errno != errno.EINVAL or reloader.config.xdp in (None, "generic"):
                raise
            said = f"native XDP takes no MTU of {mtu} bytes"
            raise InvalidSpec(f"{said}: reload {reloader.node.name} with --xdp generic or off first") from error
        return reloader.reload_all(workers=workers, cancel=cancel)

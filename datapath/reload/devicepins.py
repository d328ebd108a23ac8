"""Pins of links of devices that have changed their names: each link is pinned at any moment, also if the reload dies.

A pin lies under the name of its device (DatapathConfig.device_links); one of a renamed device may lie where another's
belongs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from datapath.kernel import linkpins, links
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace


def open_pinned(work: Workspace, pin: Path) -> int | None:
    """Open the pinned link, until the end of the reload; None if there is none."""
    link = links.open_pin(pin)
    return None if link is None else work.keep_open(link)


def device(work: Workspace, link: int) -> str | None:
    """Return the name of the device that a link belongs to; None if that is gone, or is no device."""
    ifindex = links.info(link).ifindex
    names = (each.name for each in work.netlink.interfaces().values() if each.ifindex == ifindex)
    return next((name for name in names if name in work.config.devices), None)


def find(work: Workspace, link: int, name: str) -> Path | None:
    """Return where a device's link is pinned as `name`, under whatever name the device had; None if it is not."""
    ident = links.info(link).id
    for directory in linkpins.directories(work.config.devices_links):
        with links.pinned(directory / name) as there:
            if there is not None and links.info(there).id == ident:
                return directory / name
    return None


def unpin(work: Workspace, step: Step, pinned: int, pin: Path) -> None:
    """Remove a pin of the step's interface; the link of another device, which had its name before, keeps one."""
    while (owner := device(work, pinned)) not in (None, step.target):
        to = work.config.device_links(str(owner)) / pin.name
        there = open_pinned(work, to)
        if there is None:
            move(work, step, pin, to)
            return
        if links.info(there).id == links.info(pinned).id:
            break
        exchange(work, step, pinned, pin, there, to)
        pinned = there
    work.on_undo(step, partial(linkpins.pin_again, pinned, pin))
    pin.unlink(missing_ok=True)


def move(work: Workspace, step: Step, pin: Path, to: Path) -> None:
    """Give a pin another name."""
    work.on_undo(step, partial(_move_back, to, pin))
    linkpins.move(pin, to)


def exchange(work: Workspace, step: Step, link: int, pin: Path, other_link: int, other: Path) -> None:
    """Let two pins change their names."""
    for each, path in ((link, pin), (other_link, other)):
        work.on_undo(step, partial(linkpins.ensure, each, path))
    linkpins.exchange(link, pin, other_link, other)


def _move_back(pin: Path, former: Path) -> None:
    """Give a pin its former name, unless it has it."""
    if pin.exists() and not former.exists():
        linkpins.move(pin, former)

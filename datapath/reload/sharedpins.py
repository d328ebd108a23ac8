"""Links of two interfaces whose names differ in a dot alone: their pins have the same names.

Two devices with such names are refused (plans.LinksShared). An interface that is no device may have one: what it loses
are its own links, not the pins of the device.
"""

from __future__ import annotations

from pathlib import Path

from datapath.kernel.links import LinkInfo
from datapath.reload.workspace import Workspace


def is_of_another_device(work: Workspace, link: LinkInfo, ifindex: int, directory: Path) -> bool:
    """Tell whether a link that is pinned in `directory` is a device's, and not of the interface `ifindex`."""
    if link.ifindex in (None, 0, ifindex):
        return False
    names = {each.name for each in work.netlink.interfaces().values() if each.ifindex == link.ifindex}
    return any(work.config.device_links(name) == directory for name in names.intersection(work.config.devices))

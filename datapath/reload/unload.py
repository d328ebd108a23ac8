"""Taking an endpoint out of the datapath, in the order in which no live packet meets half of it.

Routes first, then the interface is set down and filters and links go; the control plane then drops its map entries
(`forget` below), and only after that the policy slot and the pins go. In the other order a caller finds the endpoint,
and its slot empty (cilium issue 32167). An interface that stays up lets everything pass that the endpoint sends, until
somebody removes it: no program is there to check it (later versions of Cilium set it down as well).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from datapath.base.mapnames import endpoint_maps
from datapath.endpoint import DatapathConfig, Endpoint
from datapath.errors import LinkNotFound, NetlinkError
from datapath.kernel import hooks, linkpins, routes
from datapath.kernel.hooks import Direction
from datapath.kernel.netlink import NetlinkSocket, link_down, unless
from datapath.kernel.pins import Pin
from datapath.reload import policyarrays, tcxlinks

_LOCK = "lock"


def endpoint_lock(config: DatapathConfig, number: int) -> Path:
    """Return the file whose lock every reload of an endpoint holds, and `unload`, which removes it."""
    return config.state / str(number) / _LOCK


def drop_lock(config: DatapathConfig, number: int) -> None:
    """Remove the lock of an endpoint, which the caller holds, and its directory, unless something else is in there."""
    directory = config.state / str(number)
    if os.listdir(directory) == [_LOCK]:
        _remove_lock(directory)


def unload(
    config: DatapathConfig,
    netlink: NetlinkSocket,
    endpoint: Endpoint,
    forget: Callable[[], object],
    *,
    detach: Callable[[], object] | None = None,
    discard: Callable[[], object] | None = None,
) -> None:
    """Remove everything that reloads of a pod have made; the caller holds its lock. What is gone already is no error.

    Links of tcx go with the filters, whoever removes those.

    `detach` removes its routes and filters, where another loader does that; `discard` comes last, before the lock goes.
    An interface of the same name that came later is another endpoint's: nothing there is touched (cilium issue 44530).
    """
    if detach is None:
        detach_endpoint(netlink, endpoint)
    else:
        _set_down(netlink, _interface(netlink, endpoint))
        detach()
    ifindex = _interface(netlink, endpoint)
    if ifindex is not None:
        tcxlinks.remove_from(config.netns, ifindex)
    linkpins.remove(config.endpoint_links(endpoint.id))
    forget()
    policyarrays.clear(config.globals, endpoint.id)
    for name in endpoint_maps(endpoint.id):
        pin = Pin(config.globals / name)
        pin.finalize()
        pin.path.unlink(missing_ok=True)
    _remove_directory(config.state / str(endpoint.id), discard)


def detach_endpoint(netlink: NetlinkSocket, endpoint: Endpoint) -> None:
    """Remove the routes of an endpoint, set its interface down, and remove its filters."""
    ifindex = _interface(netlink, endpoint)
    if ifindex is None:
        return
    for route in routes.endpoint_routes(endpoint, ifindex):
        routes.remove_all(netlink, route, lambda _: None)
    _set_down(netlink, ifindex)
    for direction in Direction:
        _detach_ours(netlink, ifindex, direction)


def _set_down(netlink: NetlinkSocket, ifindex: int | None) -> None:
    if ifindex is not None:
        unless(errno.ENODEV, netlink, f"set interface {ifindex} down", link_down(ifindex))


def _detach_ours(netlink: NetlinkSocket, ifindex: int, direction: Direction) -> None:
    """Remove our filters; what goes meanwhile, with its qdisc or interface perhaps, needs no removal."""
    try:
        present = hooks.filters(netlink, ifindex, direction)
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return
    for found in present:
        if not found.is_ours:
            continue
        try:
            hooks.detach(netlink, found)
        except NetlinkError as error:
            # EINVAL: there is no qdisc any more.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                raise


def _interface(netlink: NetlinkSocket, endpoint: Endpoint) -> int | None:
    """Return the index of the endpoint's interface, None if it is gone. Any other error means that it may be there."""
    try:
        found = netlink.ifindex(endpoint.ifname)
    except LinkNotFound:
        return None
    return found if endpoint.ifindex in (None, found) else None


def _remove_directory(directory: Path, discard: Callable[[], object] | None) -> None:
    """Remove an endpoint's files, the lock last: who gets it next finds nothing that is still being removed."""
    for entry in list(os.scandir(directory)):
        if entry.name == _LOCK:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    if discard is not None:
        discard()
    _remove_lock(directory)


def _remove_lock(directory: Path) -> None:
    (directory / _LOCK).unlink(missing_ok=True)
    try:
        directory.rmdir()
    except OSError as error:
        # The endpoint is being loaded anew.
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise

"""Taking an endpoint out of the datapath, in the order in which no live packet meets half of it.

Routes first, then the filters; the control plane then drops its map entries (`forget` below), and only after that the
policy slot and the pins go. In the other order a caller finds the endpoint, and its slot empty (cilium issue 32167).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress

from datapath.endpoint import DatapathConfig, Endpoint
from datapath.errors import LinkNotFound
from datapath.kernel import hooks, routes
from datapath.kernel.hooks import Direction
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import Pin
from datapath.reload import policyarrays

ENDPOINT_MAPS = ("cilium_calls_{:05d}", "cilium_calls_custom_{:05d}", "cilium_policy_{:05d}")


def unload(config: DatapathConfig, netlink: NetlinkSocket, endpoint: Endpoint, forget: Callable[[], None]) -> None:
    """Remove everything that reloads of a pod have made; what is gone already (its interface, say) is no error."""
    with suppress(LinkNotFound):
        ifindex = netlink.ifindex(endpoint.ifname)
        for route in routes.endpoint_routes(endpoint, ifindex):
            routes.remove(netlink, route)
        for direction in Direction:
            for found in hooks.filters(netlink, ifindex, direction):
                if found.is_ours:
                    hooks.detach(netlink, found)
    forget()
    policyarrays.clear(config.globals, endpoint.id)
    for name in ENDPOINT_MAPS:
        pin = Pin(config.globals / name.format(endpoint.id))
        pin.finalize()
        pin.path.unlink(missing_ok=True)
    shutil.rmtree(config.state / str(endpoint.id), ignore_errors=True)

"""The options of a pair of netkit devices (include/uapi/linux/if_link.h), which pyroute2 does not know by itself."""

from __future__ import annotations

from functools import cache
from typing import Any

from lab.node.messages import ifinfmsg

KIND = "netkit"

L2, L3 = 0, 1
"""NETKIT_L2, NETKIT_L3: with Ethernet addresses, or without, so that nobody asks for them (IFF_NOARP)."""

_PASS, _DROP = 0, 2  # NETKIT_PASS, NETKIT_DROP
_SCRUB_NONE = 0  # NETKIT_SCRUB_NONE


def options(peer: dict[str, Any], mode: int) -> list[tuple[str, Any]]:
    """Return the options of a pair in mode L2 or L3, as Cilium's agent sets them (pkg/datapath/connector).

    Without a program what the pod sends is dropped. Marks stay on what goes into the pod, from Linux 6.13 on; kernels
    before that ignore the option.
    """
    _teach()
    return [
        ("IFLA_NETKIT_PEER_INFO", peer),
        ("IFLA_NETKIT_MODE", mode),
        ("IFLA_NETKIT_POLICY", _PASS),
        ("IFLA_NETKIT_PEER_POLICY", _DROP),
        ("IFLA_NETKIT_SCRUB", _SCRUB_NONE),
    ]


@cache
def _teach() -> None:
    """Let pyroute2 encode the options."""
    # First, as everywhere: another thread that imports another part of it meanwhile would find it half imported.
    message = ifinfmsg()

    from pyroute2.netlink import nla
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfveth

    class Options(nla):  # type: ignore[misc]
        nla_map = (
            ("IFLA_NETKIT_UNSPEC", "none"),
            ("IFLA_NETKIT_PEER_INFO", "peer"),
            ("IFLA_NETKIT_PRIMARY", "uint8"),
            ("IFLA_NETKIT_POLICY", "uint32"),
            ("IFLA_NETKIT_PEER_POLICY", "uint32"),
            ("IFLA_NETKIT_MODE", "uint32"),
            ("IFLA_NETKIT_SCRUB", "uint32"),
        )

        @staticmethod
        def peer(*_: Any, **__: Any) -> type:
            return ifinfveth  # type: ignore[no-any-return]

    message.ifinfo.register_link_kind(module={KIND: Options})

"""The arguments that say what a new node's network is like, as several commands declare them."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from datapath.endpoint import DATAPATH_MODES, XDP_MODES
from lab.cli.datapath import add_attach_option, add_loader_option, add_source_options
from lab.cli.targets import count

if TYPE_CHECKING:
    from lab.node.topology import NodeSpec

PODS = 2
DEVICES_HELP = "native devices that get programs: eth0, and VLAN devices on it, which are made, such as eth0,eth0.100"


def add_network_options(parser: argparse._ActionsContainer) -> None:
    """Declare routing, tunnel and devices."""
    parser.add_argument("--endpoint-routes", action="store_true", help="a route per pod instead of one by cilium_host")
    parser.add_argument("--tunnel", action="store_true", help="VXLAN to other nodes instead of native routing")
    parser.add_argument("--devices", default="", metavar="NAMES", help=DEVICES_HELP)
    parser.add_argument(
        "--xdp",
        choices=XDP_MODES,
        metavar="MODE",
        help=f"a prefilter at XDP of the native devices: {', '.join(XDP_MODES)} (off)",
    )
    parser.add_argument(
        "--datapath-mode",
        choices=DATAPATH_MODES,
        default=DATAPATH_MODES[0],
        metavar="MODE",
        help="devices of the pods: pairs of veth, or of netkit, to which programs are attached by links, without "
        f"Ethernet addresses or with them ({', '.join(DATAPATH_MODES)}; {DATAPATH_MODES[0]})",
    )


def network_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return these as options of a NodeSpec."""
    return {
        "endpoint_routes": args.endpoint_routes,
        "tunnel": args.tunnel,
        "devices": tuple(name for name in args.devices.split(",") if name) or _xdp_devices(args.xdp),
        "xdp": args.xdp,
        "datapath_mode": args.datapath_mode,
    }


def _xdp_devices(mode: str | None) -> tuple[str, ...]:
    """Return the devices of a node of which none are named: XDP needs one."""
    from lab.node.topology import UPLINK

    return () if mode is None else (UPLINK,)


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """Declare a node that a command makes for itself, and the C that it runs."""
    parser.add_argument("--pods", type=count, default=PODS, metavar="N", help=f"pods of the node ({PODS})")
    add_network_options(parser)
    add_source_options(parser)
    add_loader_option(parser)
    add_attach_option(parser)


def own_node(args: argparse.Namespace, name: str) -> NodeSpec:
    """Return the node that the options ask for, under a name of this process."""
    from lab.node.topology import NodeSpec, check_pod_count

    check_pod_count(args.pods)
    return NodeSpec(f"{name}-{os.getpid()}", pods=args.pods, **network_options(args))

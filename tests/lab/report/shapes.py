"""Shapes of nodes, as lab.node.shape returns them; a test compares this with that of a node in the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.node.shape import VERSION


def end(namespace: str, name: str) -> dict[str, str]:
    return {"namespace": namespace, "name": name}


def link(name: str, ifindex: int, addresses: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """Return an interface without programs."""
    values = {"name": name, "ifindex": ifindex, "kind": "veth", "mtu": 1500, "up": True, "addresses": list(addresses)}
    return {**values, **dict.fromkeys(("peer", "parent", "master", "vlan", "port")), **changes}


def hooked(name: str, ifindex: int, addresses: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """Return an interface of a node, with the programs that are given."""
    return {**link(name, ifindex, addresses), "ingress": [], "egress": [], "xdp": [], **changes}


def route(destination: str, dev: str, rest: str = "", via: str | None = None) -> dict[str, Any]:
    by = "" if via is None else f" via {via}"
    text = f"{destination}{by} dev {dev}{rest}"
    return {"destination": destination, "via": via, "dev": dev, "text": text}


def pod(name: str, ifname: str, number: int, *, identity: int, ident: int, inner: str = "eth0") -> dict[str, Any]:
    """Return an endpoint with the address of that number."""
    addresses = (f"10.244.0.{number}/32", f"fd00:10:244::{number:x}/128")
    inside = link(inner, 31, addresses, peer=end("node", ifname))
    labels = ["reserved:health"] if name == "health" else []
    return {
        **{"name": name, "ifname": ifname, "endpoint_id": ident, "identity": identity, "labels": labels},
        "inside": inside,
    }


def node_shape(pods: int = 1, **changes: Any) -> dict[str, Any]:
    """Return the shape of a node with a tunnel and with endpoint routes, before anything is loaded."""
    names = [f"pod-{number}" for number in range(1, pods + 1)]
    shape: dict[str, Any] = {
        "version": VERSION,
        **{"datapath_mode": "veth", "attach": "tc", "endpoint_routes": True, "tunnel": True, "tunnel_port": 8472},
        **{"xdp": None, "devices": ["eth0"], "mtu": 1500, "route_mtu": 1450},
        "interfaces": [
            hooked("eth0", 32, ("172.20.0.1/24", "fd00:172:20::1/64"), peer=end("outside", "eth0")),
            hooked("cilium_net", 33, peer=end("node", "cilium_host")),
            hooked("cilium_host", 34, ("10.244.0.1/32", "fd00:10:244::1/128"), peer=end("node", "cilium_net")),
            hooked("cilium_vxlan", 35, kind="vxlan", port=8472),
            hooked("lxc_health", 36, peer=end("health", "cilium")),
            *(hooked(f"{{{name}}}", 48 + n, peer=end(name, "eth0")) for n, name in enumerate(names)),
        ],
        "routes": [
            route("default", "eth0", via="172.20.0.254"),
            route("172.20.0.0/24", "eth0", " src 172.20.0.1 proto kernel scope link"),
            route("default", "eth0", via="fd00:172:20::fe"),
            route("fd00:10:244::1", "cilium_host", " proto kernel"),
            route("fd00:172:20::/64", "eth0", " proto kernel"),
        ],
        "endpoints": [
            pod("health", "lxc_health", 2, identity=4, ident=2, inner="cilium"),
            *(pod(name, f"{{{name}}}", 3 + n, identity=1001 + n, ident=101 + n) for n, name in enumerate(names)),
        ],
        "outside": [link("eth0", 31, ("172.20.0.254/24", "fd00:172:20::fe/64"), peer=end("node", "eth0"))],
        "others": [],
    }
    return shape | changes


def seen(shape: dict[str, Any], number: int = 1) -> dict[str, Any]:
    """Return a node of a scenario as its record has it; the interfaces of its pods are called lxc1, lxc2, ..."""
    pods = [each["name"] for each in shape["endpoints"] if each["name"] != "health"]
    return {"number": number, "shape": shape, "names": {name: f"lxc{at}" for at, name in enumerate(pods, 1)}}

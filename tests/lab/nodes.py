"""A node that stands, compared with its node.json."""

from __future__ import annotations

import os

from lab.node import live
from lab.node.node import Node
from lab.node.topology import NODE
from tests.lab.labs import ip


def differences(name: str) -> list[str]:
    """Return in what the kernel and node.json differ, with regard to all that changes of a node touch."""
    node = Node.open(name)
    spec, facts = node.spec, node.facts
    shown = {link["ifname"]: link for link in ip(node.netns(NODE), "link") if link["ifname"] != "lo"}
    devices = (facts.uplink, facts.cilium_net, facts.cilium_host, facts.vxlan)
    wanted = {device.name: device.ifindex for device in devices}
    wanted |= {pod.ifname: pod.ifindex for pod in (facts.health, *facts.pods)}
    indices = {name: link["ifindex"] for name, link in shown.items()}
    found = [] if indices == wanted else [f"links {indices}, not {wanted}"]
    found += [f"{name} has MTU {link['mtu']}" for name, link in shown.items() if link["mtu"] != spec.mtu]
    port = shown["cilium_vxlan"]["linkinfo"]["info_data"]["port"] if "cilium_vxlan" in shown else None
    if port != spec.tunnel_port:
        found.append(f"the tunnel has port {port}, not {spec.tunnel_port}")
    files = {entry.name for entry in os.scandir(node.root / "ns")}
    if files != set(node.namespaces):
        found.append(f"namespaces {sorted(files)}, not {sorted(node.namespaces)}")
    for pod in (facts.health, *facts.pods):
        (inner,) = ip(node.netns(pod.name), "link", "show", "dev", pod.inner_ifname)
        if inner["mtu"] != spec.mtu:
            found.append(f"{pod.name} has MTU {inner['mtu']}")
    if [pod.name for pod in spec.pod_specs] != [pod.name for pod in facts.pods]:
        found.append("spec and facts have other pods")
    routes = {route["dst"] for route in ip(node.netns(NODE), "route", "show", "dev", "cilium_host")}
    if (str(spec.pod_cidr4) in routes) is spec.endpoint_routes:
        found.append(f"routes by cilium_host: {sorted(routes)}")
    if live.is_unfinished(node.root):
        found.append("a note of a change")
    return found

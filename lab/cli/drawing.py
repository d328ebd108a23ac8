"""The drawing of a node in the terminal: the outside on top, the node in a box, its endpoints hanging from it."""

from __future__ import annotations

from collections.abc import Iterable

from lab.node.network import LinkView
from lab.node.topology import NODE, NodeSpec, PodFacts
from lab.node.view import NodeView

_NOTHING = "-"


def draw(view: NodeView) -> str:
    """Return the drawing, without a final newline."""
    by_index = {link.ifindex: link for link in view.links}
    facts = view.node.facts
    endpoints = [pod for pod in (facts.health, *facts.pods) if pod.ifindex in by_index]
    hanging = {pod.ifindex for pod in endpoints}
    inside = [line for link in view.links if link.ifindex not in hanging for line in _device(link)]
    routes = ["", "routes", *(f"  {route}" for route in view.routes)]
    outside = [f"{link.name}  {' '.join(link.addresses)}" for link in view.outside]
    top = _box("outside", outside)
    node = _box("node", [*inside, *routes])
    # A line from the bottom of one box to the top of the other.
    top[-1] = top[-1][:2] + "┬" + top[-1][3:]
    node[0] = node[0][:2] + "┴" + node[0][3:]
    if endpoints:
        node[-1] = node[-1][:2] + "┬" + node[-1][3:]
    return "\n".join([_headline(view.node.spec), "", *top, "  │", *node, *_endpoints(endpoints, by_index)])


def _headline(spec: NodeSpec) -> str:
    words = [
        f"{spec.name}: {len(spec.pod_specs)} pod{'' if len(spec.pod_specs) == 1 else 's'}",
        *([f"node {spec.node_index + 1} of {spec.cluster}"] if spec.cluster else []),
        "VXLAN tunnel" if spec.tunnel else "native routing",
        "endpoint routes" if spec.endpoint_routes else "node route by cilium_host",
        f"MTU {spec.mtu}" + (f" (pods' default route {spec.route_mtu})" if spec.route_mtu != spec.mtu else ""),
    ]
    return ", ".join(words)


def _device(link: LinkView) -> list[str]:
    notes = [note for note, wanted in (("NOARP", link.noarp), ("down", not link.up)) if wanted]
    lines = [f"{link.ifindex:>4} {link.name:<15}  {'  '.join((_kind(link), link.mac, *notes))}"]
    if link.addresses:
        lines.append(f"{'':5}{'  '.join(link.addresses)}")
    return [*lines, f"{'':5}{_hooks(link)}"]


def _kind(link: LinkView) -> str:
    """Return what a link is, and what it is connected to."""
    if link.peer is not None:
        place = "" if link.peer.namespace == NODE else f"{link.peer.namespace}/"
        return f"{link.kind} to {place}{link.peer.name}"
    if link.parent is not None:
        return f"{link.kind}{'' if link.vlan is None else f' {link.vlan}'} on {link.parent}"
    return f"{link.kind}, port {link.port}" if link.port else link.kind


def _hooks(link: LinkView) -> str:
    xdp = f"  xdp {' '.join(link.xdp)}" if link.xdp else ""
    return f"ingress {_programs(link, link.ingress)}  egress {_programs(link, link.egress)}{xdp}"


def _programs(link: LinkView, names: Iterable[str]) -> str:
    """Filters are called after their program and their interface; the interface is clear here."""
    own = f"-{link.name}"
    return " ".join(name.removesuffix(own).replace(f"{own} (", " (") for name in names) or _NOTHING


def _endpoints(endpoints: list[PodFacts], links: dict[int, LinkView]) -> list[str]:
    """Two lines each: what it is, and what runs on its interface. Both fit into 80 columns."""
    width = max((len(pod.name) for pod in endpoints), default=0)
    lines = []
    for number, pod in enumerate(endpoints):
        last = number == len(endpoints) - 1
        link = links[pod.ifindex]
        outer = f"  {'└' if last else '├'}─{link.ifindex:>4} {pod.ifname:<15}"
        inner = f"{pod.inner_ifname:<6} {pod.name:<{width}}  id {pod.endpoint_id}  {pod.ipv4} {pod.ipv6}"
        lines.append(f"{outer} ── {inner}")
        labels = "".join(f"  {label}" for label in sorted(pod.labels) if not label.startswith("reserved:"))
        lines.append(f"  {' ' if last else '│'}      {_hooks(link)}  identity {pod.identity}{labels}")
    return lines


def _box(title: str, lines: list[str]) -> list[str]:
    width = max(map(len, [title + "    ", *lines]))
    return [
        f"┌── {title} {'─' * (width - len(title) - 2)}┐",
        *(f"│ {line:<{width}} │" for line in lines),
        f"└{'─' * (width + 2)}┘",
    ]

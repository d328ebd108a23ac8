"""Neighbour discovery under a policy: with Cilium's C and endpoint routes it is traffic that the policy may deny.

The node's kernel asks a pod from a link-local address, and what the pod's own program answers comes from the router's:
both are the world's to the program in front of the pod.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from reloadlab import NODE, Node, enter_netns, is_ours, run_tool


@contextmanager
def known_neighbours(nodes: Sequence[Node], library: Path) -> Iterator[None]:
    """With sources of others, have the kernels of nodes and pods know each other's MACs: none asks then."""
    theirs = () if is_ours(library) else nodes
    for node in theirs:
        _configure(node, "replace")
    try:
        yield
    finally:
        for node in theirs:
            _configure(node, "del")


def _configure(node: Node, action: Literal["replace", "del"]) -> None:
    for pod in (node.facts.health, *node.pods):
        for netns, address, mac, device in (
            (NODE, pod.ipv6, pod.mac, pod.ifname),
            (pod.name, node.spec.router6, pod.node_mac, pod.inner_ifname),
        ):
            known = ("lladdr", mac, "nud", "permanent") if action == "replace" else ()
            with enter_netns(node.netns(netns)):
                run_tool(["ip", "-6", "neigh", action, str(address), "dev", device, *known])

"""Pods whose policies nothing would enforce if the tunnel's programs left them to the pods' egress programs."""

from __future__ import annotations

from collections.abc import Sequence

from datapath.errors import ReloadlabError
from datapath.kernel import hooks, tcx
from datapath.kernel.hooks import Direction
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.tcx import TcxProgram
from datapath.reload import tcxlinks
from lab.node.node import Node
from lab.node.topology import NODE


class PodsUnchecked(ReloadlabError):
    """The tunnel's programs were to leave the policy to egress programs of pods that have none; `pods` are these."""

    def __init__(self, node: str, pods: Sequence[str]) -> None:
        names, it = ", ".join(pods), "it" if len(pods) == 1 else "them"
        super().__init__(
            f"not reloaded: with endpoint routes it leaves the policy to the egress program of each pod, "
            f"and {names} of {node} has none: reload {it} first"
        )
        self.pods = tuple(pods)


def unchecked_pods(node: Node) -> tuple[str, ...]:
    """Return the pods, and the health endpoint, whose interface is there and has no egress program.

    An interface that has taken the place of a pod's is another's.
    """
    config = node.datapath_config()
    with NetlinkSocket(node.netns(NODE)) as netlink:
        there = {(link.ifindex, link.mac) for link in netlink.interfaces().values()}
        return tuple(
            pod.name
            for pod in (node.facts.health, *node.pods)
            if (pod.ifindex, pod.node_mac) in there
            and not any(found.is_ours for found in hooks.filters(netlink, pod.ifindex, Direction.EGRESS))
            and not any(map(_checks, tcx.programs_if_there(config.netns, pod.ifindex, Direction.EGRESS)))
        )


def _checks(found: TcxProgram) -> bool:
    """Tell whether a program may enforce a policy; a reload that was killed leaves one that passes all packets on."""
    return found.is_ours and found.name != tcxlinks.NOTHING

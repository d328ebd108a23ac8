"""Routing rules by mark, as Cilium has them for its proxy: they lead through cilium_host, whatever the destination."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from reloadlab import HOST, NODE, Address, Gate, Node, Scenario, bound_socket, ends, enter_netns, run_tool, slowness
from scenarios.steps import steps_of

MARK, TABLE, PREFERENCE, LOCAL = "0xc00", "2005", "9", "100"
"""The mark of what the host sends; its table and rule, and where the rule for local addresses goes, behind it."""


@contextmanager
def routed_by_mark(node: Node) -> Iterator[None]:
    """Send marked packets out of cilium_host, those to the node's own addresses as well."""
    with ExitStack() as stack:
        for version in ("-4", "-6"):
            change(stack, node, version, "route", ["default", "dev", "cilium_host", "table", TABLE])
            change(stack, node, version, "rule", ["pref", LOCAL, "lookup", "local"])
            ip(node, version, "rule", "del", "pref", "0", "lookup", "local")
            stack.callback(ip, node, version, "rule", "add", "pref", "0", "lookup", "local", "protocol", "kernel")
            change(stack, node, version, "rule", ["pref", PREFERENCE, "fwmark", f"{MARK}/0xf00", "lookup", TABLE])
        yield


def change(stack: ExitStack, node: Node, version: str, kind: str, what: list[str]) -> None:
    """Add a route or a rule, and delete it in the end."""
    ip(node, version, kind, "add", *what)
    stack.callback(ip, node, version, kind, "del", *what)


def ip(node: Node, *arguments: str) -> None:
    with enter_netns(node.netns(NODE)):
        run_tool(["ip", *arguments])


@pytest.mark.node(pods=2)
def test_marked_packets_arrive(scenario: Scenario) -> None:
    """Pods get them, and so does the host: the stack routes them there, and does not route them here again."""
    node, ports = scenario.node, itertools.count(30000)
    known = ends(node)
    lost: list[str] = []

    def ask(step: object, _: object) -> None:
        if lost:
            return
        for name, which in itertools.product((HOST, "pod-1"), (1, 2)):
            source = Address(known[HOST][0], str(known[HOST][which]), next(ports))
            target = Address(known[name][0], str(known[name][which]), next(ports))
            if not arrives(source, target):
                lost.append(f"{step}: {source.ip} -> {target.ip}")

    gate = Gate(ask, after="*")
    with routed_by_mark(node):
        scenario.reload("host", "pod-1", gate=gate)
    assert gate.passed >= steps_of(scenario.agent, "host", "pod-1")
    assert not lost, "\n".join(lost)


EGRESS_ALONE = {
    "name": "to one port",
    "endpoint": HOST,
    "egress": [{"toEntities": ["host"], "toPorts": [{"ports": [{"port": "7000", "protocol": "UDP"}]}]}],
}
"""What the host may ask of itself; nothing is asked of what comes to it."""


@pytest.mark.node(pods=1, flows=lambda _: [], rate=0, policy=None, agent={"defines": (("ENABLE_HOST_FIREWALL", "1"),)})
def test_marked_packets_are_answered_while_the_firewall_goes(scenario: Scenario) -> None:
    """By the host to itself, both ways out of cilium_host and in at cilium_net.

    The egress program of cilium_host lets an answer pass that the ingress program of cilium_net has noted the request
    of: it is the first that stops asking.
    """
    scenario.agent.apply_policies([EGRESS_ALONE])
    node, ports = scenario.node, itertools.count(30000)
    netns, *addresses = ends(node)[HOST]
    unanswered: list[str] = []

    def ask(step: object, _: object) -> None:
        for address in addresses if not unanswered else ():
            source, target = Address(netns, str(address), next(ports)), Address(netns, str(address), 7000)
            if not arrives(source, target, answered=True):
                unanswered.append(f"{step}: {address}")

    gate = Gate(ask, after="*")
    with routed_by_mark(node):
        scenario.agent.configure(defines=())
        scenario.agent.reload_all(observer=gate)
    scenario.agent.apply_policies([])
    assert gate.passed >= steps_of(scenario.agent)
    assert not unanswered, "\n".join(unanswered)


def arrives(source: Address, target: Address, *, answered: bool = False) -> bool:
    """Tell whether a marked datagram arrives, and its marked answer."""
    deadline = time.monotonic() + 5 * slowness()
    with (
        bound_socket(source, socket.SOCK_DGRAM, deadline) as sender,
        bound_socket(target, socket.SOCK_DGRAM, deadline) as receiver,
    ):
        for end in (sender, receiver):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(MARK, 0))
            end.settimeout(slowness())
        sender.sendto(b"marked", (target.ip, target.port))
        try:
            data, asked_by = receiver.recvfrom(64)
            if answered:
                receiver.sendto(data, asked_by)
                data = sender.recv(64)
            return data == b"marked"
        except TimeoutError:
            return False

"""Routing rules by mark, as Cilium has them for its proxy: they lead through cilium_host, whatever the destination."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from reloadlab import HOST, NODE, Address, Gate, Node, Scenario, bound_socket, ends, enter_netns, run_tool

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

    gate = Gate(ask, before="*", after="*")
    with routed_by_mark(node):
        scenario.reload("host", "pod-1", gate=gate)
    assert gate.passed > 40
    assert not lost, "\n".join(lost)


def arrives(source: Address, target: Address) -> bool:
    """Tell whether a marked datagram arrives."""
    deadline = time.monotonic() + 5
    with (
        bound_socket(source, socket.SOCK_DGRAM, deadline) as sender,
        bound_socket(target, socket.SOCK_DGRAM, deadline) as receiver,
    ):
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(MARK, 0))
        sender.sendto(b"marked", (target.ip, target.port))
        receiver.settimeout(1.0)
        try:
            return receiver.recv(64) == b"marked"
        except TimeoutError:
            return False

"""A failed reload must keep the connections that are alive; those that traffic begins meanwhile are its own affair."""

from __future__ import annotations

from datapath.reload.connections import seconds
from lab.node.topology import NodeSpec, plan_node
from lab.watch.invariants import check_unchanged
from lab.watch.network import Network
from lab.watch.snapshot import PinnedMap, Snapshot
from lab.watch.surroundings import Surroundings

ALIVE, OVER = seconds() + 3600, 0


def snapshot(*keys: bytes, over: frozenset[bytes] = frozenset({b"over"}), closing: bytes = b"") -> Snapshot:
    lifetimes = {key: OVER if key in over else ALIVE for key in keys}
    closed = frozenset({closing}) if closing else frozenset()
    pins = {"cilium_ct4_global": PinnedMap(7, 1, dict.fromkeys(keys, b""), lifetimes, closed)}
    none: frozenset[int] = frozenset()
    nothing: frozenset[str] = frozenset()
    spec = NodeSpec("test")
    around = Surroundings(spec, plan_node(spec), Network(), {}, none, nothing, nothing, nothing)
    return Snapshot({}, pins, {}, {}, {}, {}, {}, none, none, none, {}, around)


def test_new_connections_and_those_that_are_over_are_no_change() -> None:
    assert check_unchanged(snapshot(b"a", b"over"), snapshot(b"a", b"new")) == []


def test_a_connection_that_is_alive_and_gone_is_found() -> None:
    (violation,) = check_unchanged(snapshot(b"a", b"b"), snapshot(b"b", b"new"))
    assert str(violation) == "invariant 8: map cilium_ct4_global: 1 of 2 connections are gone"


def test_a_connection_whose_time_is_over_at_once_is_gone() -> None:
    """Its key alone was kept: the programs take its next packet for that of a new one. One that was closed may end."""
    (violation,) = check_unchanged(snapshot(b"a", b"b"), snapshot(b"a", b"b", over=frozenset({b"b"})))
    assert str(violation) == "invariant 8: map cilium_ct4_global: 1 of 2 connections are gone"
    assert check_unchanged(snapshot(b"a", b"b"), snapshot(b"a", b"b", over=frozenset({b"b"}), closing=b"b")) == []

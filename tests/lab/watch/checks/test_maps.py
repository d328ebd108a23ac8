"""Content of maps that were replaced: by key and field; counters; and declarations that name keys."""

from __future__ import annotations

import re
import struct
import threading

import pytest

from datapath.base.mapnames import METRICS, policy_map
from datapath.kernel.map import open_pin
from lab.abi.policymap import PolicyEntry, policy_key_any
from lab.agent.agent import Agent
from lab.watch import invariants
from lab.watch.checks.layouts import Layout
from lab.watch.invariants import Expected, baseline, check_counters
from tests.lab.watch.faults import violations

pytestmark = pytest.mark.privileged


def test_a_changed_entry_is_found_unless_its_key_is_declared(sound_node: Agent) -> None:
    before, path = baseline(sound_node), sound_node.config.globals / "cilium_lxc"
    with open_pin(path) as pinned:
        key, value = next(pinned.items())
        pinned.update(key, bytes(len(value)))
        try:
            (found,) = violations(sound_node, before)
            assert found.startswith("invariant 3: map cilium_lxc: content differs: ")
            for declared in ({key}, lambda each: each == key):
                assert violations(sound_node, before, expected=Expected(changed={path.name: declared})) == []
            other = Expected(changed={path.name: {b"other"}})
            assert violations(sound_node, before, expected=other) == [found]
        finally:
            pinned.update(key, value)


def test_counters_of_policy_entries_only_rise(sound_node: Agent) -> None:
    path = sound_node.config.globals / policy_map(sound_node.node.pod("pod-1").endpoint_id)
    key = policy_key_any(egress=True, identity=4711)
    with open_pin(path) as pinned:
        pinned.update(key, PolicyEntry(packets=5, length=500).pack())
        try:
            before = baseline(sound_node)
            pinned.update(key, PolicyEntry(packets=6, length=600).pack())
            assert violations(sound_node, before) == []
            pinned.update(key, PolicyEntry(packets=5, length=100).pack())
            text = f"map {path.name}: counters of {key.hex()} went back from (5, 500) to (5, 100)"
            assert violations(sound_node, before) == [f"invariant 3: {text}"]
            expected = Expected(migrated=frozenset({path.name}), changed={path.name: ()})
            assert violations(sound_node, before, expected=expected) == [], "its entries come and go"
        finally:
            pinned.delete(key)


def test_metrics_only_rise(sound_node: Agent) -> None:
    """Those of forwarded packets too, which no other check looks at."""
    with open_pin(sound_node.config.globals / METRICS) as pinned:
        key = struct.pack("=BB6x", 0, 1)[: pinned.info.key_size]
        cpus = pinned.value_bytes // 16
        pinned.update(key, struct.pack("=QQ", 7, 700) * cpus)
        before = baseline(sound_node)
        pinned.update(key, struct.pack("=QQ", 6, 600) * cpus)
        (found,) = violations(sound_node, before)
        # A kernel may send a packet of its own meanwhile.
        assert re.fullmatch(r"invariant 3: map cilium_metrics: .* went back from \d+ to \d+", found)
        pinned.delete(key)


def test_drops_that_are_counted_a_moment_later_are_waited_for(sound_node: Agent) -> None:
    """A packet may lie in a queue of the kernel when the traffic has stopped."""
    with open_pin(sound_node.config.globals / METRICS) as pinned:
        key = struct.pack("=BB6x", 133, 1)[: pinned.info.key_size]
        cpus = pinned.value_bytes // 16
        pinned.update(key, bytes(pinned.value_bytes))
        before = baseline(sound_node)
        later = threading.Timer(0.2, pinned.update, (key, struct.pack("=QQ", 1, 100) * cpus))
        later.start()
        found = check_counters(sound_node, before, Expected(drops={(133, 1): cpus}))
        later.join()
        pinned.delete(key)
    assert found == []


def test_drops_that_were_counted_for_another_reason_are_not_waited_for(
    sound_node: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted too often is wrong whatever else comes."""
    monkeypatch.setattr(invariants, "SETTLE_SECONDS", 600)
    with open_pin(sound_node.config.globals / METRICS) as pinned:
        key = struct.pack("=BB6x", 134, 1)[: pinned.info.key_size]
        pinned.update(key, bytes(pinned.value_bytes))
        before = baseline(sound_node)
        pinned.update(key, struct.pack("=QQ", 1, 100) * (pinned.value_bytes // 16))
        found = check_counters(sound_node, before, Expected(drops={(133, 1): 1}))
        pinned.delete(key)
    said = [violation.what for violation in found]
    assert any(what.startswith("0 packets dropped as ") and what.endswith(" instead of 1") for what in said), said


def test_fields_that_moved_are_the_same_and_values_that_did_not_are_not() -> None:
    old = Layout({"id": (0, 4)}, {"mac": (0, 8), "port": (8, 2)})
    new = Layout({"pad": (0, 4), "id": (4, 4)}, {"port": (0, 4), "new": (4, 4), "mac": (8, 8)})
    keys, values = old.shared(new)
    assert (keys, values) == (["id"], ["mac", "port"])
    before = {struct.pack("=I", 3): struct.pack("=QH", 0xAABB, 80)}
    moved = {struct.pack("=II", 0, 3): struct.pack("=IIQ", 80, 9, 0xAABB)}
    copied = {struct.pack("=II", 0, 3): struct.pack("=QH6x", 0xAABB, 80)}
    assert old.read(before, keys, values) == new.read(moved, keys, values)
    assert old.read(before, keys, values) != new.read(copied, keys, values)

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from datapath.errors import ReloadlabError
from datapath.kernel import bpf
from lab.abi.reasons import MISSED_TAIL_CALL
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch import metrics
from lab.watch.metrics import EGRESS, INGRESS, Counters, describe
from tests.lab.labs import unique_name

FORWARDED = 0
INVALID_SOURCE = 132


def test_drops_since_count_only_drops() -> None:
    before = Counters(packets={(FORWARDED, INGRESS): 5, (INVALID_SOURCE, EGRESS): 2, (MISSED_TAIL_CALL, INGRESS): 1})
    now = Counters(packets={(FORWARDED, INGRESS): 9, (INVALID_SOURCE, EGRESS): 5, (MISSED_TAIL_CALL, INGRESS): 1})
    assert now.drops_since(before) == {(INVALID_SOURCE, EGRESS): 3}
    assert now.drops_since(Counters()) == {(INVALID_SOURCE, EGRESS): 5, (MISSED_TAIL_CALL, INGRESS): 1}
    assert before.drops_since(before) == {}


def test_a_drop_is_described_by_reason_and_direction() -> None:
    assert describe(MISSED_TAIL_CALL, INGRESS).endswith("(140, ingress)")
    assert describe(250, 7) == "unknown reason 250 (250, 7)"


@pytest.mark.privileged
def test_node_without_programs_has_no_counters() -> None:
    with Node(NodeSpec(unique_name(), pods=0)) as node:
        assert metrics.read(node) == Counters()


QUEUE = 22
"""BPF_MAP_TYPE_QUEUE: it can be opened, and has no keys to read."""


def rules(node: Node) -> object:
    return metrics.rules(node, "host")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("name", "read", "nothing", "error"),
    [
        ("cilium_metrics", metrics.packets, {}, "MetricsKey: 0 bytes without types"),
        ("cilium_metrics", metrics.read, Counters(), "MetricsKey: 0 bytes without types"),
        ("reloadlab_hits", metrics.read, Counters(), os.strerror(errno.EINVAL)),
        ("cilium_policy_00001", rules, {}, "PolicyKey: 0 bytes without types"),
    ],
)
def test_counters_that_cannot_be_read_are_an_error(
    name: str, read: Callable[[Node], object], nothing: object, error: str
) -> None:
    """Nothing read is not nothing dropped: only a missing map has no counters."""
    with Node(NodeSpec(unique_name(), pods=0)) as node:
        directory = node.datapath_config().globals
        directory.mkdir(parents=True)
        assert read(node) == nothing
        fd = bpf.map_create(QUEUE, 0, 8, 4)
        bpf.obj_pin(fd, directory / name)
        os.close(fd)
        with pytest.raises(ReloadlabError, match=error):
            read(node)


def test_an_empty_slot_of_a_policy_array_has_its_words_in_every_release() -> None:
    """Until 1.14 it is a missed tail call; since 1.15 the programs say whose slot it is."""
    assert [describe(reason, INGRESS) for reason in (202, 203)] == [
        "Host datapath not ready (202, ingress)",
        "Endpoint policy program not available (203, ingress)",
    ]


def test_a_counter_that_went_back_is_a_difference() -> None:
    """A map that was replaced by an empty one has lost its counts: they are not taken for no drops."""
    before = Counters(packets={(INVALID_SOURCE, EGRESS): 2, (MISSED_TAIL_CALL, INGRESS): 3})
    now = Counters(packets={(MISSED_TAIL_CALL, INGRESS): 1})
    assert now.drops_since(before) == {(INVALID_SOURCE, EGRESS): -2, (MISSED_TAIL_CALL, INGRESS): -2}

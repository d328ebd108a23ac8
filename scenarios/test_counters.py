"""Every packet is counted once at each place that it passes: in cilium_metrics with its bytes, and by each program.

Nothing else runs here. A kernel may still send something of its own meanwhile: a try during which other programs than
the packet's have counted something is no try.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from reloadlab import (
    HOST,
    METRIC_EGRESS,
    METRIC_INGRESS,
    OUTSIDE,
    Address,
    ClusterScenario,
    Counters,
    Program,
    bound_socket,
    ends,
    read_counters,
    slowness,
)
from scenarios.tables import PODS

pytestmark = pytest.mark.own_sources("counts by programs: only our own C has counters for them (reloadlab_hits)")

PORT, SIZE, TRIES = 53, 100, 200
PATIENCE = 5.0
HEADERS = {4: 14 + 20 + 8, 6: 14 + 40 + 8}
FORWARDED_IN, FORWARDED_OUT, RECEIVED = (0, METRIC_INGRESS), (0, METRIC_EGRESS), (3, METRIC_INGRESS)
"""Reason and direction: into a pod, elsewhere, and what comes in without encryption.

The programs of pods and host count a packet for a local pod before they hand it over, those of the tunnel do not.
"""

Chain = tuple[tuple[str, tuple[str, ...]], ...]
"""Whose programs a packet meets, and which; IP stands for the IP version of the packet."""

SENT = ("FROM_CONTAINER", "IP_FROM_LXC", "IP_CT_EGRESS", "IP_FROM_LXC_CONT")
CALLED = ("HANDLE_POLICY", "IP_CT_INGRESS_POLICY_ONLY", "IP_POLICY")
ROUTED = ("TO_CONTAINER", "IP_CT_INGRESS", "IP_TO_ENDPOINT")
BY_HOST = ("FROM_HOST", "IP_FROM_HOST")
BY_DEVICE = ("FROM_NETDEV", "IP_FROM_NETDEV")
FROM_TUNNEL = ("FROM_OVERLAY", "IP_FROM_OVERLAY")


@dataclass(frozen=True, slots=True)
class Path:
    """A way between two places ("1/client"): by node, the programs that a packet meets and what is counted."""

    source: str
    target: str
    chains: Mapping[int, Chain]
    counted: Mapping[int, Mapping[tuple[int, int], int]]


def on_one_node(source: str, target: str, chain: Chain, counted: Mapping[tuple[int, int], int]) -> Path:
    return Path(f"1/{source}", f"1/{target}", {1: chain}, {1: counted})


OFF = (
    on_one_node("client", "server", (("client", SENT), ("server", CALLED)), {FORWARDED_OUT: 1, FORWARDED_IN: 1}),
    on_one_node("client", HOST, (("client", SENT),), {FORWARDED_OUT: 1}),
    on_one_node("client", OUTSIDE, (("client", SENT), (HOST, ("TO_NETDEV",))), {FORWARDED_OUT: 2}),
    on_one_node(HOST, "server", ((HOST, BY_HOST), ("server", CALLED)), {RECEIVED: 1, FORWARDED_IN: 2}),
    on_one_node(
        OUTSIDE,
        "server",
        ((HOST, (*BY_DEVICE, *BY_HOST)), ("server", CALLED)),
        {RECEIVED: 2, FORWARDED_OUT: 1, FORWARDED_IN: 2},
    ),
)
ON = (
    on_one_node(
        "client", "server", (("client", SENT), ("server", ROUTED)), {FORWARDED_OUT: 1, RECEIVED: 1, FORWARDED_IN: 1}
    ),
    on_one_node("client", HOST, (("client", SENT),), {FORWARDED_OUT: 1}),
    on_one_node(HOST, "server", (("server", ROUTED),), {RECEIVED: 1, FORWARDED_IN: 1}),
    on_one_node(
        OUTSIDE,
        "server",
        ((HOST, BY_DEVICE), ("server", ROUTED)),
        {RECEIVED: 2, FORWARDED_OUT: 1, FORWARDED_IN: 1},
    ),
)
TUNNEL = (
    Path(
        "1/client",
        "2/server",
        {1: (("client", SENT), (HOST, ("TO_OVERLAY",))), 2: ((HOST, FROM_TUNNEL), ("server", CALLED))},
        {1: {FORWARDED_OUT: 2}, 2: {RECEIVED: 1, FORWARDED_IN: 1}},
    ),
    Path(
        "1/client",
        f"2/{HOST}",
        {1: (("client", SENT), (HOST, ("TO_OVERLAY",))), 2: ((HOST, (*FROM_TUNNEL, "TO_HOST")),)},
        {1: {FORWARDED_OUT: 2}, 2: {RECEIVED: 1, FORWARDED_OUT: 2}},
    ),
    Path(
        f"1/{HOST}",
        "2/server",
        {1: ((HOST, (*BY_HOST, "TO_OVERLAY")),), 2: ((HOST, FROM_TUNNEL), ("server", CALLED))},
        {1: {RECEIVED: 1, FORWARDED_OUT: 2}, 2: {RECEIVED: 1, FORWARDED_IN: 1}},
    ),
)


def network(paths: Sequence[Path], name: str, **options: Any) -> Any:
    mark = pytest.mark.cluster(pods=PODS, policy=None, flows=lambda _: [], rate=0, **options)
    return pytest.param(paths, id=name, marks=mark)


@pytest.mark.parametrize(
    "paths",
    [
        network(OFF, "off", nodes=1, devices=("eth0",)),
        network(ON, "endpoint-routes", nodes=1, devices=("eth0",), endpoint_routes=True),
        network(TUNNEL, "tunnel", nodes=2, tunnel=True),
    ],
)
def test_every_packet_is_counted(cluster: ClusterScenario, paths: Sequence[Path]) -> None:
    """Before and after a reload of everything."""
    wrong: list[str] = []
    replaced = 0
    for _ in range(2):
        for path in paths:
            for version in (4, 6):
                wrong += follow(cluster, path, version, replaced)
        replaced = max(key[0] for node in cluster.cluster.nodes for key in read_counters(node).hits)
        cluster.reload()
    assert not wrong, "\n".join(wrong)


def follow(cluster: ClusterScenario, path: Path, version: int, replaced: int) -> list[str]:
    """Send datagrams until one has the programs to itself; return what was counted otherwise.

    Loads up to the number `replaced` must have no packets any more.
    """
    what = f"{path.source} -> {path.target} IPv{version}"
    nodes = dict(enumerate(cluster.cluster.nodes, 1))
    programs = {number: expected_hits(cluster, path.chains.get(number, ()), version, number) for number in nodes}
    deadline = time.monotonic() + PATIENCE * slowness()
    with ExitStack() as stack:
        sender, receiver = (
            stack.enter_context(bound_socket(address(cluster, end, version), socket.SOCK_DGRAM, deadline))
            for end in (path.source, path.target)
        )
        receiver.settimeout(PATIENCE * slowness())
        hits: dict[int, Counter[tuple[int, int]]] = {}
        for _ in range(TRIES):
            before = {number: read_counters(node) for number, node in nodes.items()}
            # Programs and metrics are not read at one moment: nothing may have come in between.
            if before != {number: read_counters(node) for number, node in nodes.items()}:
                continue
            sender.sendto(bytes(SIZE), receiver.getsockname())
            receiver.recv(2 * SIZE)
            after = {number: read_counters(node) for number, node in nodes.items()}
            hits = {number: hits_since(before[number], after[number], replaced) for number in nodes}
            if hits == programs and after == {number: read_counters(node) for number, node in nodes.items()}:
                return [
                    f"{what}, node {number}: {line}"
                    for number in nodes
                    for line in counted(before[number], after[number], path.counted.get(number, {}), version)
                ]
    return [f"{what}: the programs have counted {hits}, not {programs}"]


def address(cluster: ClusterScenario, place: str, version: int) -> Address:
    number, _, name = place.partition("/")
    namespace, *addresses = ends(cluster.cluster.node(int(number)))[name]
    return Address(namespace, str(addresses[version == 6]), PORT)


def expected_hits(cluster: ClusterScenario, chain: Chain, version: int, number: int) -> Counter[tuple[int, int]]:
    """Return how often each program runs, by the id of its pod (0 for the host) and its number."""
    node = cluster.cluster.node(number)
    found: Counter[tuple[int, int]] = Counter()
    for name, programs in chain:
        source = 0 if name == HOST else node.pod(name).endpoint_id
        found.update((source, Program[program.replace("IP_", f"IPV{version}_")]) for program in programs)
    return found


def hits_since(before: Counters, now: Counters, replaced: int) -> Counter[tuple[int, int]]:
    """Return the packets by pod and program; those of a replaced load under the program's number below zero."""
    found: Counter[tuple[int, int]] = Counter()
    for key, packets in now.hits.items():
        generation, source, program = key
        found[source, program if generation > replaced else -program] += packets - before.hits.get(key, 0)
    return +found


def counted(before: Counters, now: Counters, wanted: Mapping[tuple[int, int], int], version: int) -> list[str]:
    """Return what cilium_metrics has counted otherwise."""
    length = HEADERS[version] + SIZE
    packets = Counter(now.packets) - Counter(before.packets)
    lengths = Counter(now.lengths) - Counter(before.lengths)
    wrong = [] if packets == wanted else [f"{dict(packets)} packets, not {dict(wanted)}"]
    expected = {key: number * length for key, number in wanted.items()}
    return wrong + ([] if lengths == expected else [f"{dict(lengths)} bytes, not {expected}"])

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.bench.load import BATCH, UdpLoad
from lab.bench.pairs import tunnel_pair_without_programs
from lab.node.topology import NODE
from tests.lab.labs import ip, unique_name

pytestmark = pytest.mark.privileged


def encapsulated(netns: Path) -> int:
    (link,) = ip(netns, "-s", "link", "show", "cilium_vxlan")
    return int(link["stats64"]["tx"]["packets"])


@pytest.mark.parametrize("version", [4, 6])
def test_without_programs_the_kernel_uses_the_tunnel(version: int) -> None:
    with ExitStack() as stack:
        pair = tunnel_pair_without_programs(stack, unique_name("plain"))
        netns = pair.source_node.netns(NODE)
        with UdpLoad(pair.ends(version)) as load:
            load.run(1)
            before = encapsulated(netns)
            load.run(1)
            assert encapsulated(netns) - before >= BATCH

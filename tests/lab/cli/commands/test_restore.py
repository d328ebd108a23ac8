"""`reloadlab restore` of several labs: what became of each is told, whatever becomes of the next."""

from __future__ import annotations

import json

import pytest

from datapath.kernel.netlink import NetlinkSocket
from datapath.reload.plans import CILIUM_NET
from lab.agent.cluster import build, cluster_specs
from lab.cli.main import main
from lab.node.links import delete_link
from lab.node.node import Node
from lab.node.topology import NODE
from tests.lab.labs import removed, unique_name

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_an_error_at_the_second_lab_keeps_what_is_told_of_the_first(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = unique_name()
    with removed(f"{cluster}-1") as first, removed(f"{cluster}-2") as second:
        build(cluster_specs(cluster, 2, pods=0))
        with NetlinkSocket(Node.open(second).netns(NODE)) as netlink:
            netlink.request("delete", delete_link(netlink.ifindex(CILIUM_NET)))
        assert main(["restore", cluster, *options]) == 1
        told = capsys.readouterr()
        assert told.err.endswith("interface cilium_host does not exist\n")
        if options:
            (document,) = json.loads(told.out)
            assert (document["lab"], len(document["reloads"])) == (first, 2)
        else:
            assert told.out == f"{first}: 2 of 2 restored\n"

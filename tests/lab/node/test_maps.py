from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf
from lab.node.maps import MapNotLoaded, find_map, open_if_pinned, open_map
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(NodeSpec(unique_name("maps"), pods=0)) as node:
        yield node


def pin(node: Node, name: str) -> Path:
    path = node.datapath_config().globals / name
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = bpf.map_create(MapType.ARRAY, 4, 4, 1, name=name)
    bpf.obj_pin(fd, path)
    os.close(fd)
    return path


def test_a_map_is_opened_by_its_name(node: Node) -> None:
    pin(node, "cilium_some")
    with open_map(node, "cilium_some") as opened:
        assert opened.name == "cilium_some"
    found = find_map(node, "cilium_some")
    assert found is not None
    found.close()


def test_a_missing_map_says_how_to_load_it(node: Node) -> None:
    assert find_map(node, "cilium_none") is None
    with pytest.raises(MapNotLoaded, match=f"no map cilium_none; .* reloadlab reload {node.name}"):
        open_map(node, "cilium_none")


def test_only_a_missing_pin_is_no_map(tmp_path: Path) -> None:
    """What is there and cannot be opened is an error, not a missing map."""
    (tmp_path / "file").touch()
    with pytest.raises(BpfError) as caught:
        open_if_pinned(tmp_path / "file")
    assert caught.value.errno != errno.ENOENT

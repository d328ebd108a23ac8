from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.map import open_pin
from lab.node import maps
from lab.node.maps import MapNotLoaded, find_map, open_if_pinned, open_map, open_used
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


def test_a_map_that_no_loaded_program_uses_is_not_there_to_be_loaded(node: Node) -> None:
    """Release 1.19 has no cilium_tunnel_map; a policy map comes with the programs of its endpoint."""
    calls = pin(node, "cilium_calls_hostns_00001")
    try:
        with pytest.raises(MapNotLoaded, match=r"no map cilium_tunnel_map; its programs do not use it$"):
            open_map(node, "cilium_tunnel_map")
        with pytest.raises(MapNotLoaded, match=f"no map cilium_policy_00101; .* reloadlab reload {node.name}"):
            open_map(node, "cilium_policy_00101")
    finally:
        calls.unlink()


SCHED_CLS = 3


def load_user(pinned: Path) -> int:
    """Load a program that refers to a map."""
    with open_pin(pinned) as opened:
        code = struct.pack("<BBhiBBhi", 0x18, 1 << 4 | 1, 0, opened.fd, 0, 0, 0, 0)  # r1 = the map
        code += struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # return 0
        fd = bpf.prog_load(SCHED_CLS, code, "GPL")
    assert fd >= 0, os.strerror(-fd)
    return fd


def test_of_two_names_the_map_is_the_one_that_programs_use(node: Node) -> None:
    names = "cilium_policy_v2_00101", "cilium_policy_00101"
    with pytest.raises(MapNotLoaded, match=f"no map {names[1]};"):
        open_used(node, names, 101)
    old = pin(node, names[1])
    with open_used(node, names, 101) as opened:
        assert opened.name == names[1]
    pin(node, names[0])
    with open_used(node, names, 101) as opened:
        assert opened.name == names[0], "no program uses either"
    program = load_user(old)
    calls = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 50, name="calls")
    try:
        bpf.map_update(calls, struct.pack("<I", 7), struct.pack("<I", program))
        bpf.obj_pin(calls, node.datapath_config().globals / "cilium_calls_00101")
        with open_used(node, names, 101) as opened:
            assert opened.name == names[1], "sources with the first name were left again"
    finally:
        os.close(program)
        os.close(calls)


def test_only_a_missing_pin_is_no_map(tmp_path: Path) -> None:
    """What is there and cannot be opened is an error, not a missing map."""
    (tmp_path / "file").touch()
    with pytest.raises(BpfError) as caught:
        open_if_pinned(tmp_path / "file")
    assert caught.value.errno != errno.ENOENT


@pytest.mark.parametrize("gone", ["cilium_policy_v2_00103", "cilium_policy_00103"])
def test_a_pin_that_goes_while_the_used_map_is_looked_for(
    node: Node, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """A reload moves it aside, or removes it."""
    names = ("cilium_policy_v2_00103", "cilium_policy_00103")
    pins = {name: pin(node, name) for name in names}

    def look(node: Node, endpoint_id: int) -> frozenset[int]:
        pins[gone].unlink()
        return frozenset()

    monkeypatch.setattr(maps, "_used_by", look)
    with open_used(node, names, 103) as opened:
        assert opened.name == names[0]
    for path in pins.values():
        path.unlink(missing_ok=True)

"""What a broken control plane does with the maps of another release: it leaves them empty, or as they were."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import LIBRARY
from datapath.base.mapnames import IPCACHE, IPCACHE_V2
from datapath.kernel.pins import map_id
from datapath.reload.step import Plan
from lab.agent.agent import Agent, Change
from lab.agent.filling import filled_late, kept_maps
from lab.loaders.command import TC, find_loader
from lab.node.maps import find_map
from lab.node.node import Node
from tests.lab.labs import loaded_node

pytestmark = pytest.mark.privileged


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with loaded_node("filling", tmp_path / "templates", pods=1) as node:
        yield node


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Sources of another release, of whose maps the kernel is told the types."""
    return Path(shutil.copytree(LIBRARY, tmp_path / "bpf"))


def entries(node: Node) -> int | None:
    """Return how many entries the map of a new name has; None if it is not there."""
    opened = find_map(node, IPCACHE_V2)
    if opened is None:
        return None
    with opened:
        return len(list(opened.keys()))


@pytest.mark.parametrize("late", [True, False], ids=["late", "in time"])
def test_a_map_of_a_new_name_that_is_filled_late_is_empty_until_all_is_loaded(
    node: Node, library: Path, tmp_path: Path, late: bool
) -> None:
    """The agent that begins with another release would make and fill it before the first reload."""
    seen: dict[str, int | None] = {}

    def look(plan: Plan) -> Plan:
        seen[plan.subject] = entries(node)
        return filled_late(plan) if late else plan

    with Agent(node, library=library, templates=tmp_path, defines=[("IPCACHE_MAP", IPCACHE_V2)]) as agent:
        agent.change, agent.creates_maps = look, not late
        agent.restore()
    filled = entries(node)
    assert filled
    empty: dict[str, int | None] = {"host": None, "health": 0, "pod-1": 0}
    assert seen == (empty if late else dict.fromkeys(empty, filled))


@pytest.mark.parametrize("change", [None, kept_maps], ids=["sound", "keep-maps"])
def test_maps_that_are_kept_have_the_entries_of_the_release_before(
    node: Node, library: Path, tmp_path: Path, change: Change | None
) -> None:
    """The next release has the fields of an identity in another order: a loader that compares sizes sees nothing."""
    with Agent(node, library=library, templates=tmp_path) as agent:
        agent.reload_all()
    swapped = tmp_path / "next"
    shutil.copytree(library, swapped)
    header = swapped / "lib" / "ipcache.h"
    text = header.read_text()
    fields = "\t__u32 sec_identity;\n", next(line for line in text.splitlines(True) if "__be32 tunnel_endpoint" in line)
    assert "".join(fields) in text
    header.write_text(text.replace("".join(fields), "".join(reversed(fields))))
    before = map_id(node.globals / IPCACHE)
    with Agent(node, library=swapped, templates=tmp_path, loader=find_loader(TC)) as agent:
        agent.change = change
        agent.reload("pod-1")
    assert (map_id(node.globals / IPCACHE) == before) == (change is not None)

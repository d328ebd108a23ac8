from __future__ import annotations

import struct
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from datapath.kernel.cpus import cpu_ids, cpu_list, possible_cpus


@pytest.mark.parametrize(
    ("text", "values", "size"),
    [("0\n", 1, 1), ("0-1\n", 2, 2), ("0-3,8-11\n", 8, 12), ("0,2,5-6\n", 4, 7)],
    ids=["one", "range", "two ranges", "single numbers"],
)
def test_sparse_numbers_are_counted_once(tmp_path: Path, text: str, values: int, size: int) -> None:
    """A per-CPU map has a value for each possible CPU; an array indexed by CPU reaches to the highest number."""
    (tmp_path / "possible").write_text(text)
    assert possible_cpus(tmp_path / "possible") == values
    assert cpu_ids(tmp_path / "possible") == size


def test_cpu_list(tmp_path: Path) -> None:
    (tmp_path / "online").write_text("0-1,4\n")
    assert cpu_list(tmp_path / "online") == {0, 1, 4}


@pytest.mark.privileged
def test_the_kernel_has_a_value_for_each_possible_cpu() -> None:
    fd = bpf.map_create(MapType.PERCPU_ARRAY, 4, 8, 1)
    with open(fd, "rb", buffering=0):
        value = b"".join(struct.pack("=Q", cpu + 1) for cpu in range(possible_cpus()))
        bpf.map_update(fd, bytes(4), value)
        assert bpf.map_lookup(fd, bytes(4), len(value)) == value

"""Names of kernel addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.system.symbols import extent, places

TABLE = """\
ffffffff81000000 T _text
ffffffff81000100 T ip_rcv
ffffffff81000100 r __ksymtab_ip_rcv
ffffffff81000200 t ip_forward
ffffffffc0000000 t veth_xmit\t[veth]
"""


def test_an_address_is_a_function_and_a_distance(tmp_path: Path) -> None:
    table = tmp_path / "kallsyms"
    table.write_text(TABLE)
    assert places([0xFFFFFFFF81000110, 0xFFFFFFFF81000200, 0xFFFFFFFFC0000004, 0x10], table) == {
        0xFFFFFFFF81000110: "ip_rcv+0x10",
        0xFFFFFFFF81000200: "ip_forward+0x0",
        0xFFFFFFFFC0000004: "veth_xmit+0x4",
        0x10: "0x10",
    }


def test_a_table_that_hides_its_addresses_names_none(tmp_path: Path) -> None:
    table = tmp_path / "kallsyms"
    table.write_text("0000000000000000 T _text\n0000000000000000 T ip_rcv\n")
    assert places([0xFFFFFFFF81000110], table) == {0xFFFFFFFF81000110: "0xffffffff81000110"}


def test_a_function_goes_up_to_the_next(tmp_path: Path) -> None:
    table = tmp_path / "kallsyms"
    table.write_text(TABLE)
    assert extent("ip_rcv", table) == range(0xFFFFFFFF81000100, 0xFFFFFFFF81000200)
    assert not extent("netkit_xmit", table)


@pytest.mark.privileged
def test_the_running_kernel_has_the_function_that_frees_packets() -> None:
    lines = Path("/proc/kallsyms").read_text().splitlines()
    address = next(int(line.split()[0], 16) for line in lines if line.split()[2] == "consume_skb")
    assert places([address + 1])[address + 1] == "consume_skb+0x1"

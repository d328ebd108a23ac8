"""What netlink messages are called: as the kernel's header has it."""

from __future__ import annotations

import struct

import pytest
from pyroute2.netlink.rtnl import RTM_VALUES

from lab.gates.netlinkcalls import describe

NUMBERS = sorted(kind for kind in RTM_VALUES if isinstance(kind, int) and 16 <= kind < 124)


def name(kind: int) -> str:
    return describe(struct.pack("=IHHII", 16, kind, 0, 0, 0), -1)[0]


def test_messages_have_the_kernels_names() -> None:
    assert {kind: name(kind) for kind in NUMBERS} == {kind: RTM_VALUES[kind] for kind in NUMBERS}


@pytest.mark.parametrize("kind", [15, 124])
def test_what_is_no_message_of_rtnetlink_is_a_number(kind: int) -> None:
    assert name(kind) == f"netlink-{kind}"

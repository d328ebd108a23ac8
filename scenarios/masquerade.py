"""Masquerading: what a node forwards through a device gets the node's address; Cilium's agent has iptables do it."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.expressions import genex, masq
from pyroute2.nftables.main import NFTables

from reloadlab import enter_netns

_INET, _TABLE, _CHAIN = 1, "masquerade", "postrouting"
_OIF, _REGISTER, _EQUAL = 5, 1, 0  # linux/netfilter/nf_tables.h: NFT_META_OIF, NFT_REG_1, NFT_CMP_EQ


@contextmanager
def masquerading(netns: Path, device: str) -> Iterator[None]:
    """Let a rule of nf_tables hold; the test is skipped where the kernel has no CONFIG_NFT_MASQ."""
    with enter_netns(netns):
        nftables, index = NFTables(nfgen_family=_INET), socket.if_nametoindex(device)
    with nftables:
        nftables.table("add", name=_TABLE)
        try:
            hook = {"hook": "postrouting", "type": "nat", "priority": 100}
            nftables.chain("add", table=_TABLE, name=_CHAIN, policy=1, **hook)
            leaving = [genex("meta", {"key": _OIF, "dreg": _REGISTER}), genex("cmp", _equals(index))]
            try:
                nftables.rule("add", table=_TABLE, chain=_CHAIN, expressions=(leaving, masq()))
            except NetlinkError as error:
                if error.code == errno.ENOENT:
                    pytest.skip("needs CONFIG_NFT_MASQ")
                raise
            yield
        finally:
            nftables.table("del", name=_TABLE)


def _equals(number: int) -> dict[str, object]:
    value = {"attrs": [("NFTA_DATA_VALUE", struct.pack("=I", number))]}
    return {"sreg": _REGISTER, "op": _EQUAL, "data": value}

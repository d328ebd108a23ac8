"""Masquerading: what a node forwards through a device gets the node's address; Cilium's agent has iptables do it."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.expressions import genex, masq
from pyroute2.nftables.main import NFTables

from datapath.errors import ReloadlabError
from datapath.kernel.netns import enter

_INET, _TABLE, _CHAIN = 1, "masquerade", "postrouting"
_OIF, _REGISTER, _EQUAL = 5, 1, 0  # linux/netfilter/nf_tables.h: NFT_META_OIF, NFT_REG_1, NFT_CMP_EQ


class NoMasquerading(ReloadlabError):
    """A kernel without what masquerading needs."""

    def __init__(self) -> None:
        super().__init__("nothing can be masqueraded: needs CONFIG_NF_TABLES_INET and CONFIG_NFT_MASQ")


@contextmanager
def masquerading(netns: Path, device: str) -> Iterator[None]:
    """Masquerade what leaves a namespace through a device, by a rule of nf_tables there. NoMasquerading."""
    with enter(netns):
        nftables, index = NFTables(nfgen_family=_INET), socket.if_nametoindex(device)
    with nftables, ExitStack() as undo:
        try:
            nftables.table("add", name=_TABLE)
            undo.callback(nftables.table, "del", name=_TABLE)
            nftables.chain("add", table=_TABLE, name=_CHAIN, hook="postrouting", type="nat", priority=100, policy=1)
            leaving = [genex("meta", {"key": _OIF, "dreg": _REGISTER}), genex("cmp", _equals(index))]
            nftables.rule("add", table=_TABLE, chain=_CHAIN, expressions=(leaving, masq()))
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise NoMasquerading from error
            raise
        yield


def _equals(number: int) -> dict[str, object]:
    value = {"attrs": [("NFTA_DATA_VALUE", struct.pack("=I", number))]}
    return {"sreg": _REGISTER, "op": _EQUAL, "data": value}

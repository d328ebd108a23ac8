"""The mark of what a node's host sends. Cilium's agent sets it with iptables; here one rule of nf_tables does.

The rule lives in the node's namespace and goes with it. It takes effect at the same place: LOCAL_OUT, priority filter.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from datapath.errors import NetlinkError
from datapath.kernel.netlink import ANSWER_SECONDS, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, pack_attribute
from datapath.kernel.netns import enter

MARK_MAGIC_HOST, MARK_MAGIC_HOST_MASK = 0x0C00, 0x0F00

_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_INET, _LOCAL_OUT, _META_MARK, _REGISTER = 1, 3, 3, 1
_NESTED = 0x8000
_TABLE = b"reloadlab\0"
_CHAIN = b"output\0"
_WHAT = "mark what the host sends"


def set_host_mark(netns: Path) -> None:
    """Have all that the kernel and the processes of a namespace send carry MARK_MAGIC_HOST; a second call is harmless.

    Raises NetlinkError, also where the kernel has no nf_tables (CONFIG_NF_TABLES_INET).
    """
    try:
        with (
            enter(netns),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as nfnetlink,
        ):
            nfnetlink.settimeout(ANSWER_SECONDS)
            messages = list(_transaction())
            nfnetlink.send(b"".join(messages))
            _wait(nfnetlink, len(messages))
    except OSError as error:
        number = error.errno or errno.ETIMEDOUT
        raise NetlinkError(_WHAT, number, f"{os.strerror(number)} (needs CONFIG_NF_TABLES_INET)") from error


def _transaction() -> Iterator[bytes]:
    """Yield the messages of one transaction, numbered from 0; the last but one asks for an acknowledgement."""
    table = pack_attribute(1, _TABLE)
    yield _message(0, _BATCH_BEGIN, family=0, subsystem=_SUBSYSTEM)
    # Made if it is missing, so that there is one to delete.
    yield _message(1, _SUBSYSTEM << 8 | _NEWTABLE, table, flags=NLM_F_CREATE)
    yield _message(2, _SUBSYSTEM << 8 | _DELTABLE, table)
    yield _message(3, _SUBSYSTEM << 8 | _NEWTABLE, table, flags=NLM_F_CREATE)
    hook = _nested(4, _number(1, _LOCAL_OUT), _number(2, 0))
    chain = table + pack_attribute(3, _CHAIN) + hook + pack_attribute(7, b"filter\0")
    yield _message(4, _SUBSYSTEM << 8 | _NEWCHAIN, chain, flags=NLM_F_CREATE)
    expressions = _nested(4, *_expressions())
    rule = table + pack_attribute(2, _CHAIN) + expressions
    yield _message(5, _SUBSYSTEM << 8 | _NEWRULE, rule, flags=NLM_F_CREATE | NLM_F_ACK)
    yield _message(6, _BATCH_END, family=0, subsystem=_SUBSYSTEM)


def _expressions() -> Iterator[bytes]:
    """Yield what the rule does: mark = mark & ~MASK ^ HOST, on registers in the machine's byte order."""
    keep = struct.pack("=I", ~MARK_MAGIC_HOST_MASK & 0xFFFFFFFF)
    flip = struct.pack("=I", MARK_MAGIC_HOST)
    yield _expression(b"meta\0", _number(1, _REGISTER), _number(2, _META_MARK))
    yield _expression(
        b"bitwise\0",
        *(_number(1, _REGISTER), _number(2, _REGISTER), _number(3, 4)),
        *(_nested(4, pack_attribute(1, keep)), _nested(5, pack_attribute(1, flip))),
    )
    yield _expression(b"meta\0", _number(2, _META_MARK), _number(3, _REGISTER))


def _expression(name: bytes, *attributes: bytes) -> bytes:
    return _nested(1, pack_attribute(1, name), _nested(2, *attributes))


def _number(kind: int, value: int) -> bytes:
    return pack_attribute(kind, struct.pack("!I", value))


def _nested(kind: int, *attributes: bytes) -> bytes:
    return pack_attribute(kind | _NESTED, b"".join(attributes))


def _message(
    number: int, kind: int, attributes: bytes = b"", *, family: int = _INET, subsystem: int = 0, flags: int = 0
) -> bytes:
    body = struct.pack("!BBH", family, 0, subsystem) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, number, 0) + body


def _wait(nfnetlink: socket.socket, messages: int) -> None:
    """Wait for the acknowledgement of the last message that asks for one; raise OSError for a refusal."""
    while True:
        data = nfnetlink.recv(1 << 16)
        while data:
            length, kind, _, number, _ = struct.unpack_from("=IHHII", data)
            if kind == NLMSG_ERROR:
                (error,) = struct.unpack_from("=i", data, 16)
                if error:
                    raise OSError(-error, os.strerror(-error))
                if number == messages - 2:
                    return
            data = data[(length + 3) & ~3 :]

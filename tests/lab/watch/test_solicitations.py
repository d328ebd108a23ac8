"""Solicitations on a real wire: those for link-local addresses that come in are counted, and nothing else."""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from datapath.kernel.netns import enter
from lab.watch.solicitations import LinkLocalSolicitations
from tests.lab.wires import veth_pair

pytestmark = pytest.mark.privileged


def solicitation(target: str, *, kind: int = 135, next_header: int = 58) -> bytes:
    ip = (
        struct.pack("!IHBB", 6 << 28, 24, next_header, 255) + IPv6Address("fe80::1").packed + IPv6Address(target).packed
    )
    return bytes(12) + b"\x86\xdd" + ip + struct.pack("!BBHI", kind, 0, 0, 0) + IPv6Address(target).packed


def test_only_solicitations_for_link_local_addresses_that_come_in_count() -> None:
    frames = {
        "first": solicitation("fe80::7"),
        "global": solicitation("fd00::7"),
        "above": solicitation("fec0::7"),
        "advertisement": solicitation("fe80::7", kind=136),
        "UDP": solicitation("fe80::7", next_header=17),
        "ARP": bytes(12) + b"\x08\x06" + solicitation("fe80::7")[14:],
        "short": solicitation("fe80::7")[:60],
        "last": solicitation("febf:ffff::7"),
    }
    with veth_pair() as pair:
        sockets = []
        for netns in (pair.a, pair.b):
            with enter(Path(netns)):
                sockets.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
                sockets[-1].bind(("eth0", 0))
        with LinkLocalSolicitations(Path(pair.b)) as counted:
            before = counted.seen().get("eth0", 0)
            for frame in frames.values():
                for sock in sockets:
                    sock.send(frame)
            deadline = time.monotonic() + 5
            while counted.seen().get("eth0", 0) < before + 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert counted.seen() == {"eth0": before + 2}
        for sock in sockets:
            sock.close()

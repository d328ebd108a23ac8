from __future__ import annotations

import socket
import struct
import threading
import time
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from datapath.kernel.netns import enter
from lab.watch.capture import Encapsulated, TunnelCapture, decode
from tests.lab.wires import veth_pair

PORT = 8472


def vxlan_frame(inner: bytes, identity: int, port: int) -> bytes:
    """Return an inner frame in the headers of the underlay."""
    header = struct.pack("!II", 0x08000000, identity << 8)
    udp = struct.pack("!HHHH", port, port, 16 + len(inner), 0)
    ip = bytes((0x45,)) + bytes(8) + bytes((socket.IPPROTO_UDP,)) + bytes(10)
    return bytes(12) + b"\x08\x00" + ip + udp + header + inner


def inner4(source: str, destination: str) -> bytes:
    header = bytes((0x45,)) + bytes(11) + IPv4Address(source).packed + IPv4Address(destination).packed
    return bytes(12) + b"\x08\x00" + header


def inner6(source: str, destination: str) -> bytes:
    header = bytes((0x60,)) + bytes(7) + IPv6Address(source).packed + IPv6Address(destination).packed
    return bytes(12) + b"\x86\xdd" + header


def test_a_tunnelled_packet_has_identity_and_addresses() -> None:
    v4 = vxlan_frame(inner4("10.0.0.1", "10.0.0.2"), 0xABCDEF, PORT)
    assert decode(v4, PORT) == Encapsulated(0xABCDEF, IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"))
    v6 = vxlan_frame(inner6("fd00::1", "fd00::2"), 6, PORT)
    assert decode(v6, PORT) == Encapsulated(6, IPv6Address("fd00::1"), IPv6Address("fd00::2"))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(vxlan_frame(inner4("10.0.0.1", "10.0.0.2"), 1, PORT + 1), id="another port"),
        pytest.param(vxlan_frame(bytes(12) + b"\x08\x06" + bytes(28), 1, PORT), id="ARP inside"),
        pytest.param(vxlan_frame(inner4("10.0.0.1", "10.0.0.2"), 1, PORT)[:60], id="cut off"),
        pytest.param(bytes(14) + b"\x45" + bytes(60), id="no IP"),
    ],
)
def test_other_frames_are_ignored(frame: bytes) -> None:
    assert decode(frame, PORT) is None


@pytest.mark.privileged
def test_waiting_for_identities_ends_while_traffic_goes_on() -> None:
    """The time-out is kept although the socket is never empty, for a source that is seen and for one that never is."""
    seen, never = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.9")
    frame = vxlan_frame(inner4(str(seen), "10.0.0.2"), 7, PORT)
    with veth_pair() as pair, TunnelCapture(Path(pair.b), PORT) as capture:
        with enter(Path(pair.a)):
            out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind(("eth0", 0))
        until = time.monotonic() + 3

        def flood() -> None:
            while time.monotonic() < until:
                out.send(frame)

        sender = threading.Thread(target=flood)
        sender.start()
        try:
            for wanted in (seen, never):
                start = time.monotonic()
                assert capture.identities([wanted], timeout=0.3) == {seen: {7}}
                assert time.monotonic() - start < 1
        finally:
            until = 0
            sender.join()
            out.close()

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from lab.watch.capture import Encapsulated, decode, vxlan_frame

PORT = 8472


def inner4(source: str, destination: str) -> bytes:
    header = bytes((0x45,)) + bytes(11) + IPv4Address(source).packed + IPv4Address(destination).packed
    return bytes(12) + b"\x08\x00" + header


def inner6(source: str, destination: str) -> bytes:
    header = bytes((0x60,)) + bytes(7) + IPv6Address(source).packed + IPv6Address(destination).packed
    return bytes(12) + b"\x86\xdd" + header


def test_identity_and_addresses() -> None:
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
def test_other_frames(frame: bytes) -> None:
    assert decode(frame, PORT) is None

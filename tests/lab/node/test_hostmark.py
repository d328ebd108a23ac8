from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.errors import NetlinkError
from lab.node import hostmark
from lab.node.hostmark import set_host_mark
from lab.system.netns import enter
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

SO_RCVMARK = 75
"""Since Linux 5.19: a received packet comes with its mark."""


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[Path]:
    """A namespace in which only the loopback device is up; it does not take marks off."""
    path = tmp_path / "node"
    subprocess.run(["unshare", f"--net={_file(path)}", "true"], check=True, timeout=10)
    subprocess.run(nsenter(path, "ip", "link", "set", "lo", "up"), check=True, timeout=10)
    yield path
    subprocess.run(["umount", path], check=True, timeout=10)


def _file(path: Path) -> Path:
    path.touch()
    return path


def mark_of_a_datagram(netns: Path, family: socket.AddressFamily, own: int) -> int:
    """Return the mark with which a datagram arrives whose sender had set a mark of its own."""
    with (
        enter(netns),
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        receiver.settimeout(5)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            pytest.skip("needs SO_RCVMARK (Linux 5.19)")
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", own))
        sender.sendto(b"x", receiver.getsockname())
        _, ancillary, _, _ = receiver.recvmsg(1, socket.CMSG_SPACE(4))
    ((_, kind, data),) = ancillary
    assert kind == socket.SO_MARK
    return int(struct.unpack("=I", data)[0])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(("own", "arrives"), [(0, 0x0C00), (0xABCD_1F34, 0xABCD_1C34)])
def test_what_is_sent_has_the_mark_and_keeps_all_other_bits(
    netns: Path, family: socket.AddressFamily, own: int, arrives: int
) -> None:
    assert mark_of_a_datagram(netns, family, own) == own
    for _ in range(2):
        set_host_mark(netns)
        assert mark_of_a_datagram(netns, family, own) == arrives


def test_refusal_names_what_the_kernel_lacks(netns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that there is not stands for a table that the kernel has not."""
    monkeypatch.setattr(hostmark, "_LOCAL_OUT", 77)
    with pytest.raises(NetlinkError, match=r"^mark what the host sends: .* \(needs CONFIG_NF_TABLES_INET\)$"):
        set_host_mark(netns)

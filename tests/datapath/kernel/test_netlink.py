from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.endpoint import Interface
from datapath.errors import LinkNotFound, NetlinkError
from datapath.kernel.netlink import (
    DUMP_ATTEMPTS,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    RTM_GETLINK,
    RTM_NEWLINK,
    MessageTemplate,
    NetlinkSocket,
    attributes,
    pack_message,
    text,
)
from datapath.kernel.netns import NamespaceNotFound
from lab.node.messages import encode, ifinfmsg
from tests.datapath import support
from tests.lab.wires import ip, namespace

RTM_DELLINK = 17


@pytest.fixture
def netns() -> Iterator[Path]:
    with namespace() as path:
        yield Path(path)


class Meddling(NetlinkSocket):
    """A socket whose dumps of interfaces are interrupted: another socket adds one between two reads, `times` times."""

    def __init__(self, netns: Path, times: int) -> None:
        super().__init__(netns)
        self.dumps = 0
        self._left = times
        self._other = NetlinkSocket(netns)
        self._other.request("add many", *(bridge(f"many{number}") for number in range(60)))

    def close(self) -> None:
        self._other.close()
        super().close()

    def _receive(self, what: str) -> Iterator[tuple[int, int, bytes]]:
        self.dumps += 1
        # The kernel answers in pieces and goes on when one is read: what changes now, changes during the dump.
        if self.dumps <= self._left:
            self._other.request("meddle", bridge(f"meddle{self.dumps}"))
        yield from super()._receive(what)


def bridge(name: str) -> bytes:
    return encode(
        ifinfmsg,
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        {},
        [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})],
    )


def test_template_fills_its_holes() -> None:
    template = MessageTemplate(b"aaXXXXbbYY", {"x": b"XXXX", "y": b"YY"})
    assert template.fill({"x": b"1234", "y": b"56"}) == b"aa1234bb56"
    assert template.fill({"y": b"56"}) == b"aaXXXXbb56"
    assert template.fill({}) == b"aaXXXXbbYY", "a filled copy changed the template"


def test_template_refuses_another_length() -> None:
    with pytest.raises(ValueError, match="x takes 4 bytes, not 3"):
        MessageTemplate(b"aaXXXX", {"x": b"XXXX"}).fill({"x": b"123"})


@pytest.mark.parametrize(("message", "times"), [(b"XXaXX", 2), (b"a", 0)])
def test_template_refuses_a_marker_that_is_not_unique(message: bytes, times: int) -> None:
    with pytest.raises(ValueError, match=f"marker of x occurs {times} times"):
        MessageTemplate(message, {"x": b"XX"})


def test_attributes_stop_at_a_broken_length() -> None:
    good = struct.pack("=HH", 6, 0x8001) + b"ab\0\0"
    assert [(kind, bytes(value)) for kind, value in attributes(good + struct.pack("=HH", 2, 3))] == [(1, b"ab")]
    assert list(attributes(b"\1")) == []


@pytest.mark.privileged
def test_an_interface_may_have_any_name(netns: Path) -> None:
    ip(str(netns), "link", "add", "bad\udcff", "type", "bridge")
    with NetlinkSocket(netns) as netlink:
        assert netlink.ifindex("bad\udcff") == netlink.interfaces()["bad\udcff"].ifindex
        with pytest.raises(LinkNotFound, match="interface no\ufffd does not exist"):
            netlink.ifindex("no\udcff")


def test_text_ends_at_the_first_nul() -> None:
    assert text(memoryview(b"lo\0rest")) == "lo"


@pytest.mark.privileged
class TestInNamespace:
    def test_socket_stays_in_the_namespace_it_was_opened_in(self, netns: Path) -> None:
        with NetlinkSocket(netns) as netlink, NetlinkSocket() as outside:
            netlink.request("add a bridge", bridge("br-inside"))
            assert netlink.ifindex("br-inside") == support.ip(netns, "link", "show", "br-inside")[0]["ifindex"]
            with pytest.raises(LinkNotFound):
                outside.ifindex("br-inside")

    def test_interfaces_lists_names_indices_and_macs(self, netns: Path) -> None:
        with NetlinkSocket(netns) as netlink:
            netlink.request("add bridges", *(bridge(f"br{i}") for i in range(40)))
            found = netlink.interfaces()
            wanted = {
                item["ifname"]: Interface(item["ifname"], item["ifindex"], item.get("address"))
                for item in support.ip(netns, "link", "show")
            }
            assert found == wanted
            assert len(found) >= 41

    def test_interface_without_an_ethernet_address(self, netns: Path) -> None:
        """A device such as a tun has no MAC: None, not six bytes of something else."""
        with namespace() as path:
            ip(path, "tuntap", "add", "dev", "tun0", "mode", "tun")
            with NetlinkSocket(Path(path)) as netlink:
                assert netlink.interfaces()["tun0"].mac is None

    def test_missing_interface_is_link_not_found(self, netns: Path) -> None:
        with NetlinkSocket(netns) as netlink, pytest.raises(LinkNotFound, match="nope does not exist") as info:
            netlink.ifindex("nope")
        assert info.value.ifname == "nope"

    @pytest.mark.parametrize("name", ["x" * 16, "x" * 200], ids=["16 bytes", "200 bytes"])
    def test_only_a_missing_interface_is_link_not_found(self, netns: Path, name: str) -> None:
        """Whatever else the kernel says keeps its number: who takes it for "gone" forgets what is still there."""
        with NetlinkSocket(netns) as netlink, pytest.raises(NetlinkError, match="look up xxx") as info:
            netlink.ifindex(name)
        assert info.value.errno in (errno.ERANGE, errno.EINVAL)

    def test_a_lost_answer_is_not_link_not_found(self, netns: Path) -> None:
        """The kernel drops an answer for which the socket has no room, and says so with ENOBUFS."""
        message = struct.pack("=IHHIIBBHiII", 32, RTM_GETLINK, NLM_F_REQUEST, 0, 0, 0, 0, 0, 1, 0, 0)
        with NetlinkSocket(netns) as netlink:
            netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            for _ in range(4):
                netlink._send("unread", [message], acknowledge=False)
            with pytest.raises(NetlinkError, match="look up lo: No buffer space available") as info:
                netlink.ifindex("lo")
        assert info.value.errno == errno.ENOBUFS

    def test_no_answer_in_time_names_the_request(self, netns: Path) -> None:
        with NetlinkSocket(netns) as netlink:
            netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 10_000))
            netlink._send("add", [bridge("br0")])
            netlink._sequence += 1  # the answer under way is to another request
            with pytest.raises(NetlinkError, match="add: the kernel gave no answer within") as info:
                list(netlink._acknowledgements("add", netlink._sequence))
        assert info.value.errno == errno.ETIMEDOUT

    def test_a_dump_that_fails_is_an_error(self, netns: Path) -> None:
        """The kernel ends it with NLMSG_DONE and an error number: it is not an empty list."""
        message = struct.pack("=IHHIIBBHiII", 32, RTM_GETLINK, NLM_F_REQUEST, 0, 0, 0, 0, 0, 0, 0, 1)
        with NetlinkSocket(netns) as netlink:
            with pytest.raises(NetlinkError, match=r"list: Invalid argument \(Invalid values in header") as info:
                netlink.dump("list", message)
            assert info.value.errno == errno.EINVAL
            assert "lo" in netlink.interfaces(), "the socket does not work after a failure"

    def test_an_interrupted_dump_is_begun_anew(self, netns: Path) -> None:
        with Meddling(netns, times=2) as netlink:
            found = netlink.interfaces()
            assert netlink.dumps == 3
            assert found.keys() >= {f"many{number}" for number in range(60)}

    def test_a_dump_that_was_broken_off_is_read_to_its_end_first(self, netns: Path) -> None:
        """As after Ctrl-C, or an error of the socket: a rollback that lists filters must not fail of it."""
        with NetlinkSocket(netns) as netlink:
            netlink.request("add many", *(bridge(f"many{number}") for number in range(60)))
            names = netlink.interfaces()
            links = pack_message(RTM_GETLINK, bytes(16))
            netlink._send("broken off", [links], acknowledge=False, flags=NLM_F_DUMP)
            assert netlink.interfaces() == names

    def test_a_dump_that_is_always_interrupted_is_an_error(self, netns: Path) -> None:
        with Meddling(netns, times=1000) as netlink:
            with pytest.raises(NetlinkError, match="the list changed during each of 16 attempts") as info:
                netlink.interfaces()
            assert netlink.dumps == DUMP_ATTEMPTS
        assert info.value.errno == errno.EINTR

    def test_a_batch_goes_on_behind_a_failure_and_tells_the_first(self, netns: Path) -> None:
        with NetlinkSocket(netns) as netlink:
            messages = [bridge("a0"), bridge("a0"), bridge("a1"), bridge("a1"), bridge("a2")]
            with pytest.raises(NetlinkError, match=r"add \(message 2\)") as info:
                netlink.request("add", *messages)
            assert info.value.errno == errno.EEXIST
            assert {"a0", "a1", "a2"} <= netlink.interfaces().keys()
            assert netlink.ifindex("a2"), "the socket does not work after a failure"

    def test_the_kernels_own_words_are_in_the_error(self, netns: Path) -> None:
        message = encode(
            ifinfmsg,
            RTM_NEWLINK,
            NLM_F_CREATE | NLM_F_EXCL,
            {},
            [("IFLA_IFNAME", "x0"), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "nosuchkind")]})],
        )
        with NetlinkSocket(netns) as netlink, pytest.raises(NetlinkError, match="Unknown device type") as info:
            netlink.request("add x0", message)
        assert info.value.errno == errno.EOPNOTSUPP
        assert info.value.request == "add x0"

    def test_many_messages_in_several_batches(self, netns: Path) -> None:
        """More than one send holds: each batch asks for one acknowledgement only."""
        with NetlinkSocket(netns) as netlink:
            netlink.request("add lots", *(bridge(f"b{i}") for i in range(3)))
            ifindex = {name: item.ifindex for name, item in netlink.interfaces().items() if name.startswith("b")}
            # Setting an alias is cheap: 1500 messages are more than 64 KiB.
            aliases = [
                encode(ifinfmsg, RTM_NEWLINK, 0, {"index": ifindex[f"b{i % 3}"]}, [("IFLA_IFALIAS", f"number {i}")])
                for i in range(1500)
            ]
            netlink.request("name them", *aliases)
            found = {item["ifname"]: item.get("ifalias") for item in support.ip(netns, "link", "show")}
            assert [found[f"b{i}"] for i in range(3)] == ["number 1497", "number 1498", "number 1499"]

    def test_an_answer_that_nobody_waited_for_is_passed_over(self, netns: Path) -> None:
        """As after an interrupted request: its answer is still in the socket when the next one is made."""
        with NetlinkSocket(netns) as netlink:
            netlink._send(
                "late", [struct.pack("=IHHII", 32, RTM_GETLINK, NLM_F_REQUEST, 0, 0) + bytes(16)], acknowledge=False
            )
            assert "lo" in netlink.interfaces()
            netlink._send("late", [bridge("late")])
            netlink._send("late", [bridge("late")])  # answered with EEXIST
            netlink.request("add another", bridge("other"))
            assert {"late", "other"} <= netlink.interfaces().keys()

    def test_nothing_stays_open(self, netns: Path, tmp_path: Path) -> None:
        before = support.descriptors()
        with NetlinkSocket(netns) as netlink:
            netlink.interfaces()
        for _ in range(3):
            with pytest.raises(NamespaceNotFound):
                NetlinkSocket(tmp_path / "nope")
        assert support.descriptors() == before

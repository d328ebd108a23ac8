"""Sends frames made by hand from one pod to another, and says what has become of them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from reloadlab import FrameSocket, PodFacts, Scenario, packet_counters, slowness
from scenarios.frames import BROADCAST, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, arp, checksum, datagram, eth, ipv4, ipv6

PATIENCE = 2.0
"""Seconds that a drop may take to be counted, on an ordinary machine."""
PORT, SOURCE_PORT = 53, 40000
ARP_REPLY = b"\0\2"
NOWHERE = "00:00:00:00:00:00"

IP = IPv4Address | IPv6Address
Wanted = Callable[[bytes], bool]
"""Tells the frames that are waited for from the others."""
Where = tuple[int, int]
"""Reason and direction under which a drop is counted."""


@dataclass
class RawFrames:
    """Two pods of a node by their whole frames. `tag` of a frame is what tells it from all others."""

    scenario: Scenario
    client: PodFacts
    server: PodFacts
    from_client: FrameSocket
    at_server: FrameSocket
    drops: Counter[Where] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _tags: Iterator[int] = field(default_factory=itertools.count)

    def tag(self) -> bytes:
        """Return bytes that no other frame has."""
        return f"<frame {next(self._tags):06}>".encode()

    def packet(self, version: int, payload: bytes, *, hops: int = 64, target: IP | None = None) -> bytes:
        """Return a datagram of the client to the server, or to somebody else, as an IP packet."""
        source = self.client.ipv4 if version == 4 else self.client.ipv6
        to = target or (self.server.ipv4 if version == 4 else self.server.ipv6)
        message = datagram(source, to, payload, sport=SOURCE_PORT, dport=PORT)
        if isinstance(source, IPv4Address) and isinstance(to, IPv4Address):
            return ipv4(source, to, message, ttl=hops)
        assert isinstance(source, IPv6Address)
        assert isinstance(to, IPv6Address)
        return ipv6(source, to, message, hops=hops)

    def frame(self, packet: bytes, *, dst: str = "") -> bytes:
        """Return an IP packet in a frame of the client to its gateway, or to another MAC."""
        kind = ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6
        return eth(dst or self.client.node_mac, self.client.mac, kind, packet)

    def delivered(self, packet: bytes) -> bytes:
        """Return an IP packet as the server gets it: one hop less, and in a frame of its own gateway."""
        if packet[0] >> 4 == 4:
            length = (packet[0] & 15) * 4
            packet = _one_hop_less(packet[:length]) + packet[length:]
            return eth(self.server.mac, self.server.node_mac, ETH_P_IP, packet)
        packet = packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
        return eth(self.server.mac, self.server.node_mac, ETH_P_IPV6, packet)

    def expect_arrival(self, what: str, tag: bytes, frame: bytes, expected: bytes) -> None:
        """Send a frame; it must arrive at the server, byte by byte as expected."""
        self.from_client.send(frame)
        found = self.at_server.receive(lambda data: tag in data)
        if found != expected:
            self.wrong.append(f"{what}: {_hex(found)} arrived, not {_hex(expected)}")

    def expect_drop(self, what: str, tag: bytes, frame: bytes, where: Where) -> None:
        """Send a frame; it must be dropped, counted once and as said."""
        before, deadline = self._counted(), time.monotonic() + PATIENCE * slowness()
        self.from_client.send(frame)
        self.barrier()
        while not (moved := self._counted() - before) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.drops[where] += 1
        if moved != Counter({where: 1}):
            self.wrong.append(f"{what}: dropped {dict(moved)}, not {where} once")
        self._expect_silence(what, tag)

    def expect_refusal(self, what: str, tag: bytes, frame: bytes, where: Where) -> None:
        """Send a frame that the policy drops; others may be dropped for the same reason meanwhile."""
        self.from_client.send(frame)
        self.barrier()
        self.drops[where] += 1
        self._expect_silence(what, tag)

    def expect_answer(self, what: str, frame: bytes, wanted: Wanted, expected: bytes | None = None) -> None:
        """Send a frame; what is wanted must come back, byte by byte as expected if that is given."""
        self.from_client.send(frame)
        found = self.from_client.receive(wanted)
        if found is None or (expected is not None and found != expected):
            self.wrong.append(f"{what}: the answer is {_hex(found)}, not {_hex(expected)}")

    def expect_nothing(self, what: str, tag: bytes, frame: bytes, unwanted: Wanted) -> None:
        """Send a frame; it is neither dropped nor answered."""
        before = self._counted()
        self.from_client.send(frame)
        self.barrier(unwanted, what)
        if moved := self._counted() - before:
            self.wrong.append(f"{what}: dropped {dict(moved)}")
        self._expect_silence(what, tag)

    def barrier(self, unwanted: Wanted = lambda _: False, what: str = "") -> None:
        """Wait until whatever was sent before has been handled: until ARP, sent behind it, is answered."""
        client, gateway = self.client, self.scenario.node.spec.router4
        self.from_client.send(arp(1, BROADCAST, client.mac, (client.mac, client.ipv4), (NOWHERE, gateway)))
        answer = arp(2, client.mac, client.node_mac, (client.node_mac, gateway), (client.mac, client.ipv4))

        def seen(frame: bytes) -> bool:
            if unwanted(frame):
                self.wrong.append(f"{what}: answered by {_hex(frame)}")
            return frame[12:14] == ETH_P_ARP.to_bytes(2, "big") and frame[20:22] == ARP_REPLY

        if (found := self.from_client.receive(seen)) != answer:
            self.wrong.append(f"{what or 'ARP'}: the answer to ARP is {_hex(found)}, not {_hex(answer)}")

    def _expect_silence(self, what: str, tag: bytes) -> None:
        if (found := self.at_server.receive(lambda data: tag in data, timeout=0)) is not None:
            self.wrong.append(f"{what}: {_hex(found)} arrived")

    def _counted(self) -> Counter[Where]:
        return Counter({key: count for key, count in packet_counters(self.scenario.node).items() if key[0] in DROPS})


DROPS = frozenset((132, 134, 135, 137, 139, 151, 156, 157, 166, 171, 175))
"""Reasons that no traffic of the scenario itself has: the policy's are others."""


@contextmanager
def raw_frames(scenario: Scenario, client: str, server: str) -> Iterator[RawFrames]:
    """Open both pods' devices; what went otherwise than expected fails the test at the end."""
    one, other = scenario.node.pod(client), scenario.node.pod(server)
    with ExitStack() as stack:
        devices = [FrameSocket(scenario.node.netns(pod.name), pod.inner_ifname) for pod in (one, other)]
        from_client, at_server = (stack.enter_context(device) for device in devices)
        frames = RawFrames(scenario, one, other, from_client, at_server)
        yield frames
    assert not frames.wrong, "\n".join(frames.wrong)


def _one_hop_less(header: bytes) -> bytes:
    """Return an IPv4 header with its time to live counted down, and the checksum that it has then."""
    blank = header[:8] + bytes((header[8] - 1,)) + header[9:10] + bytes(2) + header[12:]
    return blank[:10] + checksum(blank).to_bytes(2, "big") + blank[12:]


def _hex(frame: bytes | None) -> str:
    return "nothing" if frame is None else frame.hex()

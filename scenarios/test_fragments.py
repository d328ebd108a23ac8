"""Datagrams in fragments, made by hand: those after the first have no ports, and are held to the ports of the first."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from reloadlab import METRIC_INGRESS, Scenario
from scenarios.frames import FRAGMENT, MORE_FRAGMENTS, UDP, datagram, fragment_header, ipv4, ipv6
from scenarios.rawframes import PORT, SOURCE_PORT, RawFrames, raw_frames
from scenarios.tables import PODS, POLICY
from scenarios.test_policy_wire import TRACKED

pytestmark = [
    pytest.mark.own_sources("fragments of two datagrams at once: other C sources do not track those of IPv6"),
    pytest.mark.node(policy=None, agent=TRACKED),
]

OPEN_PORT = [
    {
        "name": "one port",
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"toPorts": [{"ports": [{"port": str(PORT), "protocol": "UDP"}]}]}],
    }
]
CLOSED = PORT + 1

UDP_HEADER, PIECE, PIECES = 8, 16, 3
"""Bytes of payload in a fragment, and how many of them there are."""

Part = tuple[bytes, bytes]
"""A fragment's tag, and the fragment as an IP packet."""


def network(name: str, **options: Any) -> Any:
    return pytest.param(name, id=name, marks=pytest.mark.node(pods=PODS, **options))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", [network("off"), network("endpoint-routes", endpoint_routes=True)])
def test_two_datagrams_at_once(scenario: Scenario, mode: str, version: int) -> None:
    """Of one sender, whose fragments come in turns: one may pass and one may not, whichever begins, before and after
    a reload.
    """
    scenario.agent.apply_policies(OPEN_PORT)
    with raw_frames(scenario, "client", "server") as frames:
        for number in range(2):
            for open_first in (True, False):
                ident = 10 * number + open_first
                both = [
                    *((part, True) for part in fragments(frames, version, PORT, 1000 + ident)),
                    *((part, False) for part in fragments(frames, version, CLOSED, 2000 + ident)),
                ]
                for place in range(PIECES):
                    turn = both[place::PIECES] if open_first else both[place::PIECES][::-1]
                    send(frames, f"IPv{version}, {mode}, fragment {place}", turn)
            scenario.reload("client", "server", "host")
    scenario.expect(drops=dict(frames.drops))
    scenario.agent.apply_policies([])


def send(frames: RawFrames, what: str, turn: Sequence[tuple[Part, bool]]) -> None:
    """Send a fragment of each datagram, with whether it may pass."""
    for (tag, packet), allowed in turn:
        if allowed:
            frames.expect_arrival(f"{what}, open port", tag, frames.frame(packet), frames.delivered(packet))
        else:
            frames.expect_refusal(f"{what}, closed port", tag, frames.frame(packet), (POLICY, METRIC_INGRESS))


def fragments(frames: RawFrames, version: int, port: int, ident: int) -> list[Part]:
    """Return a datagram of the client to the server in fragments with this id."""
    source, target = (getattr(pod, f"ipv{version}") for pod in (frames.client, frames.server))
    tags = [frames.tag() for _ in range(PIECES)]
    message = datagram(source, target, b"".join(t.ljust(PIECE) for t in tags), sport=SOURCE_PORT, dport=port)
    ends = [UDP_HEADER + PIECE * number for number in range(1, PIECES + 1)]
    pieces = zip(tags, (0, *ends[:-1]), ends, strict=True)
    return [(tag, _packet(source, target, message[at:end], at, end < ends[-1], ident)) for tag, at, end in pieces]


def _packet(
    source: IPv4Address | IPv6Address,
    target: IPv4Address | IPv6Address,
    payload: bytes,
    offset: int,
    more: bool,
    ident: int,
) -> bytes:
    if isinstance(source, IPv4Address) and isinstance(target, IPv4Address):
        return ipv4(source, target, payload, fragment=MORE_FRAGMENTS * more | offset // 8, ident=ident)
    assert isinstance(source, IPv6Address)
    assert isinstance(target, IPv6Address)
    part = fragment_header(UDP, offset, payload, more=more, ident=ident)
    return ipv6(source, target, part, next_header=FRAGMENT)

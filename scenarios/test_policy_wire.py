"""On the wire: ping, TCP, UDP, jumbo frames, fragments between pods, host and outside, under policies, to the packet.

Two nodes and one, tunnel and native routing, both routing modes, IPv4 and IPv6. Each network goes through all chapters.
"""

from __future__ import annotations

from typing import Any

import pytest

from reloadlab import ClusterScenario
from scenarios.tables import ANYTHING, JUMBO_PING, PING, PODS, TOO_BIG, Case, allowed, chapter, refused, tcp, udp
from scenarios.wire import BESIDE, Wire

pytestmark = pytest.mark.cluster(policy=None, rate=BESIDE)

TCP, UDP = 6, 17
WEB, DNS, OTHER = tcp(80), udp(53), udp(54)
EVERYTHING = (PING, JUMBO_PING, WEB, DNS, udp(53, "full"), udp(53, "fragments"))
OUTSIDE = ["172.20.255.254/32", "fd00:172:20:ff::fe/128"]


def label(name: str) -> list[dict[str, Any]]:
    return [{"matchLabels": {"app": name}}]


def ports(*items: str) -> list[dict[str, Any]]:
    """Return toPorts for such as 80/TCP."""
    pairs = [item.split("/") for item in items]
    return [{"ports": [{"port": port, "protocol": protocol} for port, protocol in pairs]}]


WEB_AND_DNS = ports("80/TCP", "53/UDP")

INGRESS = [
    chapter(
        "no policy",
        {},
        allowed("client", ANYTHING, *EVERYTHING),
        allowed("outside", ANYTHING, PING, WEB, DNS, udp(53, "fragments")),
        allowed("host", ANYTHING, PING, WEB, DNS),
        [Case("client", udp(53, "over"), None, TOO_BIG)],
    ),
    chapter(
        "label and port",
        {"ingress": [{"fromEndpoints": label("client"), "toPorts": WEB_AND_DNS}]},
        allowed("client", ("client", TCP, 80), WEB),
        allowed("client", ("client", UDP, 53), DNS, udp(53, "full"), udp(53, "fragments")),
        refused("client", PING, tcp(81), OTHER, udp(54, "full"), udp(54, "fragments")),
        refused("stranger", PING, WEB, DNS, udp(53, "fragments")),
        refused("outside", PING, WEB, DNS),
        allowed("host", ("host", 0, 0), PING, WEB, near=True),
        refused("host", PING, WEB, near=False),
    ),
    chapter(
        "label",
        {"ingress": [{"fromEndpoints": label("client")}]},
        allowed("client", ("client", 0, 0), *EVERYTHING),
        refused("stranger", *EVERYTHING),
    ),
    chapter(
        "port",
        {"ingress": [{"toPorts": ports("80/TCP")}]},
        *(allowed(who, ("any", TCP, 80), WEB) for who in ("client", "stranger", "outside", "host")),
        *(refused(who, PING, DNS, tcp(81)) for who in ("client", "stranger", "outside")),
    ),
    chapter(
        "protocol",
        {"ingress": [{"toPorts": ports("0/ICMP", "0/ICMPv6")}]},
        *(allowed(who, ("any", "icmp", 0), PING) for who in ("client", "outside")),
        allowed("client", ("any", "icmp", 0), JUMBO_PING),
        refused("client", WEB, DNS),
    ),
    chapter(
        "denied label",
        {"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{"fromEndpoints": label("stranger")}]},
        allowed("client", ANYTHING, *EVERYTHING),
        refused("stranger", *EVERYTHING, rule=("stranger", 0, 0)),
        allowed("outside", ANYTHING, PING, WEB, DNS),
    ),
    chapter(
        "denied port",
        {"ingress": [{"fromEndpoints": label("client")}], "ingressDeny": [{"toPorts": ports("81/TCP")}]},
        allowed("client", ("client", 0, 0), WEB, PING),
        refused("client", tcp(81), rule=("client", TCP, 81)),
        refused("stranger", tcp(81), rule=("any", TCP, 81)),
        refused("stranger", WEB, PING),
    ),
    chapter(
        "world",
        {"ingress": [{"fromEntities": ["world"]}]},
        allowed("outside", ("world", 0, 0), PING, WEB, DNS, udp(53, "fragments")),
        refused("client", PING, WEB),
        refused("host", PING, WEB, near=False),
    ),
    chapter(
        "other nodes",
        {"ingress": [{"fromEntities": ["remote-node"]}]},
        allowed("host", ("remote-node", 0, 0), PING, WEB, DNS, near=False),
        refused("outside", PING, WEB),
        refused("client", PING),
    ),
    chapter(
        "cidr",
        {"ingress": [{"fromCIDR": OUTSIDE, "toPorts": ports("80/TCP")}]},
        allowed("outside", ("cidr", TCP, 80), WEB),
        refused("outside", PING, tcp(81)),
        refused("client", WEB),
    ),
    chapter(
        "nobody",
        {"ingress": [{}]},
        *(refused(who, PING, WEB, DNS) for who in ("client", "outside")),
        allowed("host", ("host", 0, 0), PING, WEB, near=True),
        # Whom it asks may answer.
        allowed("server", ANYTHING, PING, WEB, DNS, target="stranger"),
    ),
]

EGRESS = [
    chapter(
        "to label and port",
        {"egress": [{"toEndpoints": label("server"), "toPorts": WEB_AND_DNS}]},
        allowed("client", ("server", TCP, 80), WEB),
        allowed("client", ("server", UDP, 53), DNS, udp(53, "full"), udp(53, "fragments")),
        refused("client", PING, tcp(81), OTHER, udp(54, "full"), udp(54, "fragments")),
        refused("client", WEB, DNS, target="stranger"),
        refused("client", WEB, target="outside"),
        allowed("stranger", ANYTHING, PING, tcp(81), target="client"),
    ),
    chapter(
        "to all but the world",
        {"egress": [{"toEntities": ["all"]}], "egressDeny": [{"toEntities": ["world"]}]},
        allowed("client", ANYTHING, *EVERYTHING),
        refused("client", PING, WEB, DNS, rule=("world", 0, 0), target="outside"),
    ),
    chapter(
        "to the host",
        {"egress": [{"toEntities": ["host"]}]},
        allowed("client", ("host", 0, 0), PING, WEB, DNS, target="host", near=True),
        refused("client", PING, WEB, target="host", near=False),
        refused("client", PING, WEB),
    ),
    chapter(
        "to other nodes",
        {"egress": [{"toEntities": ["remote-node"]}]},
        allowed("client", ("remote-node", 0, 0), PING, WEB, DNS, target="host", near=False),
        refused("client", PING, WEB, target="host", near=True),
    ),
    chapter(
        "to a cidr",
        {"egress": [{"toCIDR": OUTSIDE}]},
        allowed("client", ("cidr", 0, 0), PING, WEB, DNS, target="outside"),
        refused("client", PING, WEB),
    ),
    chapter(
        "to nobody",
        {"egress": [{}]},
        refused("client", PING, WEB, DNS),
        refused("client", PING, target="outside"),
        allowed("stranger", ANYTHING, PING, WEB, DNS, target="client"),
    ),
]

TRACKED = {"defines": (("ENABLE_IPV4_FRAGMENTS", "1"), ("ENABLE_IPV6_FRAGMENTS", "1"))}
MIXED = {2: {"endpoint_routes": True}}


def network(name: str, **options: Any) -> Any:
    """Return a network; with jumbo frames where fragments are tracked: each MTU has programs of its own."""
    mtu = 9000 if "agent" in options else 1500
    return pytest.param("agent" in options, id=name, marks=pytest.mark.cluster(pods=PODS, mtu=mtu, **options))


@pytest.mark.parametrize(
    "fragments",
    [
        network("one node", nodes=1),
        network("one node with endpoint routes, fragments tracked", nodes=1, endpoint_routes=True, agent=TRACKED),
        network("native, fragments tracked", devices=("eth0",), agent=TRACKED),
        network("native, mixed", each=MIXED),
        network("tunnel", tunnel=True),
        network("tunnel, mixed, fragments tracked", tunnel=True, each=MIXED, agent=TRACKED),
    ],
)
def test_policy(cluster: ClusterScenario, fragments: bool) -> None:
    """Who may, is answered; who may not, is dropped on the right node; each packet is held against one rule, once."""
    with Wire(cluster, fragments=fragments) as wire:
        wrong = wire.run([*INGRESS, *EGRESS])
    assert wire.asked > 100
    assert not wrong, "\n".join(wrong)

"""Policies and reloads interleaved: at no point does a packet pass that may not, or is one lost that may.

At each gate, behind every step, real packets are sent and all counters held to what they must have moved by.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from reloadlab import ClusterScenario, Gate, ReloadlabError, Step, ipcache_key, open_pin
from scenarios.pinned import pinned
from scenarios.steps import steps_of
from scenarios.tables import ANYTHING, PING, PODS, allowed, chapter, refused, tcp, udp
from scenarios.test_policy_wire import MIXED, TCP, UDP, WEB_AND_DNS, label
from scenarios.wire import BESIDE, Wire

pytestmark = pytest.mark.cluster(policy=None, rate=BESIDE)

WEB, DNS = tcp(80), udp(53)
MAP = "cilium_policy_00103"
"""Of the server."""

ONE_BY_ONE = chapter(
    "one by one",
    {"ingress": [{"fromEndpoints": label("client"), "toPorts": WEB_AND_DNS}]},
    allowed("client", ("client", UDP, 53), DNS),
    allowed("client", ("client", TCP, 80), WEB),
    refused("client", PING),
    refused("stranger", DNS),
    refused("outside", DNS),
    allowed("host", ("host", 0, 0), DNS, near=True),
)
ALL_BUT_ONE = chapter(
    "all but one",
    {"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{"fromEndpoints": label("stranger")}]},
    allowed("client", ANYTHING, DNS, WEB, PING),
    refused("stranger", DNS, rule=("stranger", 0, 0)),
    allowed("outside", ANYTHING, DNS),
    allowed("host", ("host", 0, 0), DNS, near=True),
)
"""Each of the two lets pass what the other does not; all that is sent goes to the second node."""


@contextmanager
def gate_that_asks(
    cluster: ClusterScenario, ask: Callable[[Wire, Step], list[str]], *subjects: str, fails: bool = False
) -> Iterator[Gate]:
    """Yield a gate behind every step, and before the commit; what went otherwise at any of them fails the test.

    It must be passed at every step of the second node's `subjects`, at all but the commit if that `fails`.
    """
    steps = steps_of(cluster.cluster.agent(2), *subjects) - fails
    wrong: list[str] = []
    with Wire(cluster, to=[2]) as wire:
        gate = Gate(
            lambda step, _: wrong.extend(f"{step.name}: {line}" for line in ask(wire, step)), before="commit", after="*"
        )
        yield gate
        wrong += wire.run([ONE_BY_ONE, ALL_BUT_ONE])
    assert gate.passed >= steps
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("tunnel", marks=pytest.mark.cluster(pods=PODS, tunnel=True)),
        pytest.param("tunnel, endpoint routes", marks=pytest.mark.cluster(pods=PODS, tunnel=True, each=MIXED)),
    ],
)
def test_another_policy_at_every_gate(cluster: ClusterScenario, mode: str) -> None:
    """Whoever is reloaded: receiver, sender, host, tunnel."""
    chapters = itertools.cycle([ONE_BY_ONE, ALL_BUT_ONE])
    subjects = ("server", "client", "host", "overlay")
    with gate_that_asks(cluster, lambda wire, _: wire.run([next(chapters)]), *subjects) as gate:
        cluster.reload(*(f"2/{subject}" for subject in subjects), gate=gate)


class Refused(ReloadlabError):
    """A fault that a gate raises."""


@pytest.mark.parametrize("fails", [False, True], ids=["done", "rolled back"])
@pytest.mark.cluster(pods=PODS, tunnel=True)
def test_another_policy_while_its_map_is_migrated(cluster: ClusterScenario, fails: bool) -> None:
    """It is written to both maps: programs use the old one until the end, and for good if the reload fails."""
    agent, chapters = cluster.cluster.agent(2), itertools.cycle([ONE_BY_ONE, ALL_BUT_ONE])
    agent.require_macros()
    agent.configure(defines=(("POLICY_MAP_SIZE", "4096"),))

    def ask(wire: Wire, step: Step) -> list[str]:
        wrong = wire.run([next(chapters)])
        if fails and step.name == "commit":
            raise Refused("by the gate")
        return wrong

    with gate_that_asks(cluster, ask, "server", fails=fails) as gate:
        if fails:
            with pytest.raises(Refused):
                cluster.reload("2/server", gate=gate)
            agent.configure(defines=())
        else:
            cluster.expect(migrated=frozenset({MAP}))
            cluster.reload("2/server", gate=gate)


SEEN_BY_PACKETS = (
    *("insert policy", "attach ingress", "attach egress", "detach egress"),
    *("install routes", "remove routes", "commit"),
)


@pytest.mark.own_sources(
    "policies during a live switch of endpoint routes: two programs ask, and that of other C sources which comes first "
    "takes off the mark by which the second knows the host"
)
@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
@pytest.mark.parametrize(
    "network",
    [
        pytest.param("tunnel", marks=pytest.mark.cluster(pods=PODS, tunnel=True)),
        pytest.param("native", marks=pytest.mark.cluster(pods=PODS)),
    ],
)
def test_endpoint_routes_are_switched(cluster: ClusterScenario, network: str, on: bool) -> None:
    """Sender and receiver are in different modes for a while: each packet is held against the policy all the same.

    Once, but for the moment in which the receiver has a policy program of one mode and an egress program of the other:
    then both ask, and say the same.
    """
    agent = cluster.cluster.agent(2)
    if not on:
        agent.set_endpoint_routes(True)
    cluster.expect(other_path=True)
    twice: list[str] = []
    with Wire(cluster, to=[2], lenient=True) as wire:
        wrong = wire.run([ALL_BUT_ONE, ONE_BY_ONE])
        if network == "tunnel":
            # Who it is comes with the packet alone, and must not get lost between two programs that ask.
            client = cluster.cluster.pod("1/client")
            with open_pin(agent.config.globals / pinned(agent, "cilium_ipcache")) as ipcache:
                for address in (client.ipv4, client.ipv6):
                    assert ipcache.delete(ipcache_key(address, address.max_prefixlen))

        # Of those whom no question is about, only the whole reload is looked at.
        quiet = [agent.node.pod(name) for name in ("busy", "idle", "health")]
        bystanders = {*(pod.ifname for pod in quiet), *(pod.endpoint_id for pod in quiet)}

        def ask(step: Step, _: object) -> None:
            whose = {getattr(step, name, None) for name in ("target", "endpoint_id")}
            if step.name not in SEEN_BY_PACKETS or whose & bystanders:
                return
            before = wire.asked_twice
            wrong.extend(f"{step.name}: {line}" for case in ONE_BY_ONE.cases for line in wire.ask(ONE_BY_ONE, case))
            if wire.asked_twice > before:
                twice.append(step.name)

        agent.set_endpoint_routes(on, observer=Gate(ask, after="*"))
        assert twice == (["attach egress"] if on else ["insert policy", "attach ingress", "remove routes"])
        wire.lenient = False
        wrong += wire.run([ALL_BUT_ONE, ONE_BY_ONE])
    assert not wrong, "\n".join(wrong)

"""What is gone for a moment and there again: a hook's program, a route, a link."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from datapath.errors import ReloadlabError
from datapath.kernel import hooks
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_by_id
from datapath.kernel.netlink import NetlinkSocket
from datapath.reload.outcome import FailedReload, Outcome
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.agent.agent import Agent
from lab.node import links
from lab.node.topology import NODE
from lab.scenario.gate import Gate
from lab.system.tools import run
from lab.watch.checks.journal import check_journal
from lab.watch.invariants import Baseline, Expected, baseline, check
from lab.watch.journal import Journal, Recorded
from lab.watch.snapshot import take
from tests.lab.watch.faults import program_at
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


class Observed:
    """A node whose journal is kept from now on."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.journal = Journal(agent.node.netns(NODE))
        self.outcomes: list[Outcome] = []
        self.undone: list[FailedReload] = []
        self.before: Baseline

    def found(self) -> list[str]:
        """Stop, and return what the journal shows, without the milliseconds."""
        expected = Expected(changed=frozenset({"cilium_lxc", "cilium_ipcache"}))
        violations = check(
            self.agent,
            self.before,
            expected=expected,
            outcomes=self.outcomes,
            undone=self.undone,
            journal=self.journal,
        )
        assert all(v.invariant == 15 for v in violations), violations
        assert all(v.at and v.at[0] < v.at[-1] for v in violations)
        return [v.what.partition(" for ")[0] for v in violations]


@pytest.fixture
def observed(sound_node: Agent) -> Iterator[Observed]:
    observed = Observed(sound_node)
    sound_node.on_outcome = observed.outcomes.append
    with observed.journal:
        observed.before = baseline(sound_node)
        yield observed
    sound_node.on_outcome = None


def ip(agent: Agent, *argv: str) -> None:
    run(nsenter(agent.node.netns(NODE), "ip", *argv))


def take_off_and_put_back(agent: Agent, ifname: str, direction: Direction) -> None:
    found = program_at(agent, ifname, direction)
    with NetlinkSocket(agent.node.netns(NODE)) as netlink, program_by_id(found.program_id) as fd:
        hooks.detach(netlink, found)
        hooks.attach(netlink, found.ifindex, direction, program_fd=fd, name=found.name, priority=found.priority)


def test_reloads_leave_no_gap(observed: Observed) -> None:
    observed.agent.reload_all(workers=2)
    observed.agent.reload("pod-1")
    assert observed.found() == []


def test_switches_of_the_mode_leave_no_gap(observed: Observed) -> None:
    """Egress programs and direct routes go and come, the node route comes and goes; MTU and tunnel change."""
    agent = observed.agent
    agent.set_endpoint_routes(False, workers=2)
    agent.set_endpoint_routes(True)
    agent.set_mtu(1400)
    agent.set_mtu(1500)
    agent.set_tunnel_port(8480)
    agent.add_pod("extra")
    agent.remove_pod("extra")
    assert observed.found() == []


def test_an_emptied_egress_hook_is_found_while_a_direct_route_leads_to_the_pod(observed: Observed) -> None:
    ifname = observed.agent.node.pod("pod-1").ifname
    take_off_and_put_back(observed.agent, ifname, Direction.EGRESS)
    assert observed.found() == [f"pod-1: a direct route led to {ifname}, whose egress hook had no program"]


@pytest.mark.parametrize(
    ("ifname", "direction"),
    [("lxc_health", Direction.INGRESS), ("cilium_host", Direction.EGRESS), ("cilium_vxlan", Direction.INGRESS)],
    ids=str,
)
def test_an_emptied_hook_is_found(observed: Observed, ifname: str, direction: Direction) -> None:
    take_off_and_put_back(observed.agent, ifname, direction)
    assert observed.found() == [f"{ifname} {direction} had no program"]


def test_a_hook_that_is_emptied_by_plan_may_be_empty_until_a_reload_attaches(sound_node: Agent) -> None:
    agent, observed = sound_node, Observed(sound_node)
    agent.configure(devices=("eth0",))
    agent.reload("host")
    agent.on_outcome = observed.outcomes.append
    with observed.journal:
        observed.before = baseline(agent)
        for devices in ((), ("eth0",)):
            agent.configure(devices=devices)
            agent.reload("host")
        take_off_and_put_back(agent, "eth0", Direction.INGRESS)
        found = observed.found()
    agent.on_outcome = None
    agent.configure(devices=())
    agent.reload("host")
    assert found == ["eth0 ingress had no program"]


def fail_at_the_commit(step: Step, work: Workspace) -> None:
    raise ReloadlabError("injected")


def test_a_hook_that_is_emptied_by_plan_may_be_empty_until_a_rollback_attaches(sound_node: Agent) -> None:
    agent, observed = sound_node, Observed(sound_node)
    agent.configure(devices=("eth0",))
    agent.reload("host")
    agent.on_failure = observed.undone.append
    with observed.journal:
        observed.before = baseline(agent)
        agent.configure(devices=())
        with pytest.raises(ReloadlabError, match="injected"):
            agent.reload("host", observer=Gate(fail_at_the_commit, before="commit"))
        agent.configure(devices=("eth0",))
        found = observed.found()
    agent.on_failure = None
    agent.configure(devices=())
    agent.reload("host")
    (failed,) = observed.undone
    assert "detach ingress" in [span.step for span in failed.spans if span.target == "eth0"]
    assert found == []


def test_a_clsact_that_was_made_anew_is_found(observed: Observed) -> None:
    agent = observed.agent
    run(nsenter(agent.node.netns(NODE), "tc", "qdisc", "delete", "dev", "cilium_net", "clsact"))
    agent.reload("host")
    assert observed.found() == ["cilium_net ingress had no program"]


def test_a_route_that_was_away_is_found(observed: Observed) -> None:
    pod = observed.agent.node.pod("pod-2")
    ip(observed.agent, "route", "del", f"{pod.ipv4}/32", "dev", pod.ifname)
    ip(observed.agent, "route", "add", f"{pod.ipv4}/32", "dev", pod.ifname)
    ip(observed.agent, "-6", "route", "del", f"{pod.ipv6}/128", "dev", pod.ifname)
    observed.agent.reload("pod-2")
    assert observed.found() == [f"pod-2: no route led to {address}" for address in (pod.ipv4, pod.ipv6)]


def test_a_node_route_that_comes_too_late_is_found(observed: Observed) -> None:
    agent = observed.agent
    agent.set_endpoint_routes(False)
    agent.node.set_node_route(False)
    agent.node.set_node_route(True)
    found = observed.found()
    pods = [agent.node.pod(name) for name in ("health", "pod-1", "pod-2")]
    assert sorted(found) == sorted(f"{p.name}: no route led to {a}" for p in pods for a in (p.ipv4, p.ipv6))
    agent.set_endpoint_routes(True)


def test_a_direct_route_before_its_program_is_found(observed: Observed) -> None:
    """The order of steps when endpoint routes are switched on: a packet that takes the route meets no policy."""
    agent, pod = observed.agent, observed.agent.node.pod("pod-1")
    agent.set_endpoint_routes(False)
    with NetlinkSocket(agent.node.netns(NODE)) as netlink:
        netlink.request("add", links.route(24, IPv4Network(f"{pod.ipv4}/32"), pod.ifindex))
    agent.set_endpoint_routes(True)
    assert observed.found() == [f"pod-1: a direct route led to {pod.ifname}, whose egress hook had no program"]


def test_a_link_that_was_down_is_found(observed: Observed) -> None:
    ip(observed.agent, "link", "set", "cilium_vxlan", "down")
    ip(observed.agent, "link", "set", "cilium_vxlan", "up")
    assert observed.found() == ["interface cilium_vxlan was down"]


def test_lost_messages_are_a_gap_and_end_what_is_looked_at(sound_node: Agent) -> None:
    before = take(sound_node.node)
    with Journal(sound_node.node.netns(NODE), room=1) as journal:
        routes = [links.route(24, IPv4Network((f"10.99.{n // 256}.{n % 256}", 32)), 1) for n in range(1000)]
        gone = [links.route(25, IPv4Network((f"10.99.{n // 256}.{n % 256}", 32)), 1) for n in range(1000)]
        with NetlinkSocket(sound_node.node.netns(NODE)) as netlink:
            for _ in range(10):
                netlink.request("add", *routes)
                netlink.request("remove", *gone)
        take_off_and_put_back(sound_node, "lxc_health", Direction.INGRESS)
        recorded = journal.stop()
    assert recorded.lost_ns
    assert len(recorded.gaps) == 1
    assert "incomplete" in recorded.gaps[0]
    assert list(check_journal(sound_node, before, take(sound_node.node), recorded, ())) == []


def test_a_journal_that_cannot_read_on_says_so(sound_node: Agent) -> None:
    known = set(os.listdir("/proc/self/fd"))
    journal = Journal(sound_node.node.netns(NODE)).__enter__()
    mine = {int(number) for number in set(os.listdir("/proc/self/fd")) - known if number.isdigit()}
    (broken,) = (number for number in mine if _is_socket(number))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), broken)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTSOCK)):
        journal.stop()


def _is_socket(descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    except FileNotFoundError:  # that of the listing itself
        return False


def test_a_journal_leaves_nothing_open(sound_node: Agent) -> None:
    before = os.listdir("/proc/self/fd")
    with Journal(sound_node.node.netns(NODE)) as journal:
        pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert journal.stop() == Recorded((), ())

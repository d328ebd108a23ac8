"""Maps that are too small for what the control plane knows: no rule is left out, and a larger map ends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from datapath.errors import MapTooSmall
from lab.agent.agent import Agent
from lab.agent.enforcement import PolicyMapFull
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import PodSpec
from lab.watch.snapshot import take
from tests.exhaustive import EXHAUSTIVE
from tests.lab.agent.test_collector import udp
from tests.lab.labs import receives, removed, unique_name

pytestmark = pytest.mark.privileged

OTHERS = [f"192.0.2.{number}/32" for number in range(10)]
DENIES = {
    "name": "all but some",
    "endpoint": "pod-2",
    "ingress": [{"fromEntities": ["all"]}],
    "ingressDeny": [{"fromCIDR": OTHERS}, {"fromEndpoints": [{"matchLabels": {"name": "pod-1"}}]}],
}
LATE = {"name": "those", "endpoint": "pod-2", "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "late"}}]}]}


@pytest.fixture
def lab(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    with removed(unique_name("small")) as name:
        assert main(["up", name, "--pods", "2"]) == 0
        capsys.readouterr()
        yield name


def is_denied(node: Node) -> bool:
    with ExitStack() as stack:
        sender, receiver = (udp(stack, node, pod, port, 4) for pod, port in (("pod-1", 0), ("pod-2", 7700)))
        sender.sendto(b"denied", receiver.getsockname())
        return not receives(receiver, within=0.3)


def test_a_rule_that_does_not_fit_fails_the_reload(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first entries fit, which allow; those that deny do not. What is there stays, and can be reloaded."""
    node = Node.open(lab)
    with Agent(node) as agent:
        agent.apply_policies(DENIES)
    assert is_denied(node)
    before = take(node)
    for size in ("8", "10") if EXHAUSTIVE else ("10",):
        assert main(["reload", f"{lab}/pod-2", "-D", f"POLICY_MAP_SIZE={size}"]) == 1
        assert "map cilium_policy_00102 is too small: " in capsys.readouterr().err
        assert is_denied(node)
    assert take(node).datapath() == before.datapath()
    assert main(["reload", lab]) == 0
    assert is_denied(node)


@pytest.mark.parametrize(
    ("name", "size"), [("cilium_ipcache", "IPCACHE_MAP_SIZE"), ("cilium_lxc", "ENDPOINTS_MAP_SIZE")]
)
def test_addresses_that_do_not_fit_fail_the_reload(
    lab: str, name: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = take(Node.open(lab))
    assert main(["reload", f"{lab}/pod-2", "-D", f"{size}=4"]) == 1
    said = capsys.readouterr().err
    assert f"map {name} is too small: " in said
    assert len(said.splitlines()) == 1
    assert take(Node.open(lab)).datapath() == before.datapath()


def test_a_larger_map_ends_it(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Pods that nobody has told the agent of make the rules more than fit: a reload with a larger map takes them."""
    node = Node.open(lab)
    assert main(["reload", lab, "-D", "POLICY_MAP_SIZE=4"]) == 0
    with Agent(node) as agent:
        agent.apply_policies(LATE)
        for number in range(4):
            agent.node.add_pod(PodSpec(f"late-{number}", labels=frozenset({"app=late", f"number={number}"})))
        with pytest.raises(PolicyMapFull):
            agent.sync()
    capsys.readouterr()
    assert main(["reload", lab]) == 1, "it is still too small"
    assert "reloadlab: policy map of pod-2 is too small: 6 entries needed, it holds 4" in capsys.readouterr().err
    assert main(["restore", lab]) == 1
    assert main(["reload", lab, "--defaults"]) == 0
    assert main(["reload", lab]) == 0
    with ExitStack() as stack:
        sender, receiver = (udp(stack, node, pod, port, 4) for pod, port in (("late-3", 0), ("pod-2", 7700)))
        sender.sendto(b"allowed", receiver.getsockname())
        assert receives(receiver)


def test_addresses_that_do_not_fit_any_more(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = Node.open(lab)
    assert main(["reload", lab, "-D", "ENDPOINTS_MAP_SIZE=12"]) == 0
    with Agent(node) as agent:
        for number in range(4):
            agent.node.add_pod(f"late-{number}")
        with pytest.raises(MapTooSmall):
            agent.sync()
    assert main(["reload", lab, "--defaults"]) == 0
    with ExitStack() as stack:
        sender, receiver = (udp(stack, node, pod, port, 4) for pod, port in (("pod-1", 0), ("late-3", 7700)))
        sender.sendto(b"found", receiver.getsockname())
        assert receives(receiver)

"""Changes of a node that stands: by several processes at once, and by processes that are killed half-way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from datapath.errors import NetlinkError
from lab.node import live
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec
from lab.system.tools import run
from tests.lab.labs import interrupted_at, killed_at, python, removed, unique_name
from tests.lab.nodes import differences

pytestmark = pytest.mark.privileged

OPEN = "import sys; from lab.node.node import Node; node = Node.open(sys.argv[1]); "
COME_AND_GO = f"""{OPEN}
for number in range(int(sys.argv[3])):
    node.add_pod(f"{{sys.argv[2]}}-{{number}}")
    if number:
        node.remove_pod(f"{{sys.argv[2]}}-{{number - 1}}")
"""
CHANGE_MTU = f"""{OPEN}
for number in range(int(sys.argv[2])):
    node.set_mtu(1400 + number)
    node.set_tunnel_port(9000 + number)
    node.set_endpoint_routes(number % 2 == 0)
"""
ROUNDS = 12


@pytest.fixture
def node() -> Iterator[Node]:
    with removed(unique_name()) as name:
        yield Node.up(NodeSpec(name, pods=1, tunnel=True))


def test_changes_of_several_processes_do_not_lose_each_other(node: Node) -> None:
    """Two that add and remove pods, one that changes the MTU, the tunnel and the routing mode."""
    processes = [
        python(COME_AND_GO, node.name, "left", str(ROUNDS)),
        python(COME_AND_GO, node.name, "right", str(ROUNDS)),
        python(CHANGE_MTU, node.name, str(ROUNDS)),
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert errors == ["", "", ""]
    there = Node.open(node.name)
    assert {pod.name for pod in there.pods} == {"pod-1", f"left-{ROUNDS - 1}", f"right-{ROUNDS - 1}"}
    last = ROUNDS - 1
    assert (there.spec.mtu, there.spec.tunnel_port, there.spec.endpoint_routes) == (1400 + last, 9000 + last, False)
    assert len({pod.endpoint_id for pod in there.pods}) == 3
    assert differences(node.name) == []


def test_change_begins_with_what_others_have_changed(node: Node) -> None:
    other = Node.open(node.name)
    other.add_pod("theirs")
    other.set_mtu(1400)
    node.add_pod("ours")
    assert [pod.name for pod in node.pods] == ["pod-1", "theirs", "ours"]
    assert node.spec.mtu == 1400
    other.remove_pod("ours")
    node.refresh()
    assert [pod.name for pod in node.pods] == ["pod-1", "theirs"]
    assert differences(node.name) == []


Change = Callable[[Node], object]
CHANGES: dict[str, Change] = {
    "tunnel": lambda node: node.set_tunnel_port(9000),
    "add": lambda node: node.add_pod("late"),
    "remove": lambda node: node.remove_pod("pod-1"),
    "mtu": lambda node: node.set_mtu(1400),
    "routes": lambda node: node.set_endpoint_routes(True),
}
CALLS = {
    "tunnel": ("sendto", "renameat2,rename", "unlink"),
    "add": ("sendto", "renameat2,rename", "unlink", "mount"),
    "remove": ("sendto", "renameat2,rename", "unlink", "umount2"),
    "mtu": ("sendto", "unlink"),
    "routes": ("sendto", "renameat2,rename", "unlink"),
}
NEXT = {
    "tunnel": "node.set_tunnel_port(9100)",
    "add": "node.add_pod('late')",
    "remove": "node.add_pod('next')",
    "mtu": "node.add_pod('next')",
    "routes": "node.add_pod('next')",
}


@pytest.mark.slow
@pytest.mark.parametrize("calls", [(c, calls) for c in CHANGES for calls in CALLS[c]], ids=lambda c: f"{c[0]} {c[1]}")
def test_killed_at_each_system_call_of_a_change(calls: tuple[str, str]) -> None:
    """Whatever the next change finds, it succeeds, and node.json and the kernel agree."""
    change, names = calls
    wrong, kills = [], 0
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1, tunnel=True))
        for nth in range(1, 40):
            killed = killed_at(names, nth, partial(do, CHANGES[change], name))
            if killed:
                kills += 1
                node = Node.open(name)
                exec_next(node, NEXT[change])
                wrong += [f"killed at {names} {nth}: {what}" for what in differences(name)]
            reset(name)
            if not killed:
                break
        else:
            pytest.fail("it never came to its end")
    assert wrong == []
    assert kills > 0


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_interrupted_change_is_undone_or_complete(change: str) -> None:
    """Ctrl-C at each of its netlink requests, of every thread: a second one, while it is undone, leaves a note."""
    wrong, times = [], 0
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1, tunnel=True))
        for nth in range(1, 40):
            interrupted = interrupted_at("sendto", nth, partial(do, CHANGES[change], name))
            if change == "add":
                Node.open(name).recover()
            wrong += [f"interrupted at {nth}: {what}" for what in differences(name)]
            reset(name)
            if not interrupted:
                break
            times += 1
    assert wrong == []
    assert times > 0


def do(change: Change, name: str) -> None:
    change(Node.open(name))


def exec_next(node: Node, code: str) -> None:
    call = re.fullmatch(r"node\.(\w+)\((.*)\)", code)
    assert call is not None
    argument: int | str = call[2].strip("'") if "'" in call[2] else int(call[2])
    if call[1] == "add_pod" and argument in [pod.name for pod in node.pods]:
        # Killed when everything was done but the note.
        node.set_mtu(1500)
        return
    getattr(node, call[1])(argument)


def reset(name: str) -> None:
    """Make the node what it was, by changes that are complete."""
    node = Node.open(name)
    node.recover()
    for pod in [pod.name for pod in node.pods if pod.name != "pod-1"]:
        node.remove_pod(pod)
    if not node.pods:
        node.add_pod("pod-1")
    node.set_mtu(1500)
    node.set_endpoint_routes(False)


def test_failure_inside_a_change_undoes_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tunnel's new device cannot be made: the old one is there again, and so are the facts."""
    before = Node.open(node.name)
    replaced = live.replace_tunnel
    calls = []

    def fail(standing: live.Standing) -> None:
        calls.append(standing.spec.tunnel_port)
        replaced(standing)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(live, "replace_tunnel", fail)
    with pytest.raises(KeyboardInterrupt):
        node.set_tunnel_port(9000)
    assert calls == [9000, before.spec.tunnel_port]
    assert (node.spec, node.facts) == (before.spec, before.facts)
    assert differences(node.name) == []


def test_pod_whose_interface_index_is_taken_leaves_the_node_as_it_was(node: Node) -> None:
    before = Node.open(node.name)
    in_node = ("nsenter", f"--net={node.netns(NODE)}", "ip", "link")
    run([*in_node, "add", "br0", "index", str(node.pods[0].ifindex + 1), "type", "bridge"])
    with pytest.raises(NetlinkError, match="exists"):
        node.add_pod("late")
    assert node.facts == before.facts
    assert differences(node.name) != [], "what is not ours is still there"
    run([*in_node, "del", "br0"])
    node.add_pod("late")
    assert differences(node.name) == []

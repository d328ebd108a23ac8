"""A node.json that cannot be used: the lab is shown as broken, with the reason, and only a clear error comes of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabNotReady, Status
from lab.node import registry
from lab.node.facts import VERSION
from lab.node.node import Node
from lab.node.status import BORROWED, FACTS, LabStatus
from lab.node.topology import NodeSpec

pytestmark = pytest.mark.privileged

LAB = "hurt"


def edit(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """Return what makes a change to a document that was written as it should be."""

    def write(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return write


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "node.json is empty"),
    "half written": (lambda data: data[: len(data) // 2], "node.json is not JSON"),
    "a brace": (lambda _: b"{", "node.json is not JSON"),
    "not UTF-8": (lambda _: b'{"\xff\xfe": 1}', "node.json is not UTF-8"),
    "too deep": (lambda _: b"[" * 100_000, "node.json is not JSON"),
    "a list": (lambda _: b"[]", "node.json: the document is not an object"),
    "nothing in it": (lambda _: b"{}", "node.json: no facts, no spec, no version"),
    "another version": (
        edit(lambda d: d.update(version=VERSION + 1, more={})),
        f"node.json: it has version {VERSION + 1}, this reloadlab reads version {VERSION}",
    ),
    "unknown key": (edit(lambda d: d["spec"].update(colour="red")), "node.json: unknown spec.colour"),
    "missing key": (edit(lambda d: d["facts"]["uplink"].pop("mac")), "node.json: no facts.uplink.mac"),
    "wrong type": (edit(lambda d: d["spec"].update(mtu="1500")), "node.json: spec.mtu is not a number"),
    "truth for a number": (edit(lambda d: d["spec"].update(mtu=True)), "node.json: spec.mtu is not a number"),
    "pods that are no pods": (edit(lambda d: d["spec"].update(pods=[7])), "node.json: spec.pods[0] is not an object"),
    "bad value": (edit(lambda d: d["spec"].update(mtu=3)), "node.json: the MTU is 1280 to 65520 bytes, not 3"),
    "bad name": (
        edit(lambda d: [d["spec"]["pods"][0].update(name="../x"), d["facts"]["pods"][0].update(name="../x")]),
        "node.json: invalid pod name",
    ),
    "bad address": (edit(lambda d: d["facts"]["pods"][0].update(ipv4=7)), "facts.pods[0].ipv4 is not an IPv4 address"),
    "bad MAC": (edit(lambda d: d["facts"]["pods"][0].update(mac="zz")), "node.json: 'zz' is not a MAC"),
    "bad index": (edit(lambda d: d["facts"]["vxlan"].update(ifindex=-1)), "cilium_vxlan has interface index -1"),
    "other pods": (edit(lambda d: d["facts"]["pods"].pop()), "spec.pods and facts.pods are not the same pods"),
    "another lab's": (edit(lambda d: d["spec"].update(name="other")), "node.json is that of lab other"),
}


@pytest.fixture(scope="module")
def run_directory() -> Iterator[Path]:
    path = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.RUN_VARIABLE, str(path))
        yield path
        assert registry.remove_all() == ((LAB,), None), "a damaged lab is removed like any other"
        assert not path.exists()


@pytest.fixture(scope="module")
def whole(run_directory: Path) -> bytes:
    """The content of node.json as it should be."""
    node = Node.up(NodeSpec(LAB, pods=2))
    return (node.root / FACTS).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_facts_are_told_with_the_reason(whole: bytes, damage: str) -> None:
    write, reason = DAMAGES[damage]
    file = registry.lab_root(LAB) / FACTS
    file.write_bytes(write(whole))
    (found,) = registry.list_labs()
    assert (found.name, found.status) == (LAB, Status.BROKEN)
    assert found.reason is not None
    assert reason in found.reason
    assert "\n" not in found.reason
    with pytest.raises(LabNotReady) as refused:
        Node.open(LAB)
    assert str(refused.value) == f"lab {LAB} is broken ({found.reason}); to remove it: reloadlab down {LAB}"
    with pytest.raises(LabNotReady, match="is broken"), registry.lock_shared(LAB):
        pass
    # It may be of use to another version of reloadlab: only who names it removes it.
    assert registry.sweep() == ()


def test_what_a_killed_process_left_is_swept_whatever_its_facts(whole: bytes) -> None:
    with Node(NodeSpec("other", pods=0)) as node:
        (node.root / FACTS).write_text("{")
        assert registry.sweep() == ()
        assert node.root.exists()
    Node.up(NodeSpec("other", pods=0))
    (registry.lab_root("other") / FACTS).write_text("{")
    (registry.lab_root("other") / BORROWED).touch()
    assert registry.sweep() == ("other",)


def test_whole_facts_are_up(whole: bytes) -> None:
    (registry.lab_root(LAB) / FACTS).write_bytes(whole)
    assert registry.list_labs() == (LabStatus(LAB, Status.UP, 2, False, False),)


def test_damaged_member_still_belongs_to_its_cluster(whole: bytes) -> None:
    Node.up(NodeSpec("several-1", pods=0, cluster="several"))
    (registry.lab_root("several-1") / FACTS).write_text("[")
    assert registry.labs_of("several") == ("several-1",)
    registry.remove("several-1")

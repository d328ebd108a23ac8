"""netkit.py: whether a kernel has such devices, and which interface is the node's end of a pair."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.errors import BpfError
from datapath.kernel import netkit, tcx
from datapath.kernel.hooks import Direction
from datapath.kernel.links import AttachType
from datapath.kernel.netkit import NetkitMissing
from datapath.kernel.netns import enter
from tests.lab.wires import ip, namespace

pytestmark = pytest.mark.privileged


@pytest.fixture
def netns() -> Iterator[Path]:
    with namespace() as path:
        yield Path(path)


def test_a_kernel_without_netkit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netkit, "is_supported", lambda: False)
    assert not netkit.is_primary(1)
    with pytest.raises(NetkitMissing, match=r"Linux 6\.7, CONFIG_NETKIT"):
        netkit.require()


def test_an_interface_of_another_kind_has_the_hooks_of_tcx(netns: Path) -> None:
    with enter(netns):
        assert tcx.attach_type(1, Direction.INGRESS) is AttachType.TCX_INGRESS
        assert not netkit.is_primary(1)


def test_a_pair_has_hooks_of_its_own_at_the_nodes_end(netns: Path) -> None:
    if not netkit.is_supported():
        pytest.skip("no netkit devices: CONFIG_NETKIT")
    ip(str(netns), "link", "add", "nk7", "index", "7", "type", "netkit")
    with enter(netns):
        assert tcx.attach_type(7, Direction.INGRESS) is AttachType.NETKIT_PEER
        assert tcx.attach_type(7, Direction.EGRESS) is AttachType.NETKIT_PRIMARY
        with pytest.raises(BpfError) as caught:
            netkit.is_primary(99)
    assert caught.value.errno == errno.ENODEV

"""Drops of what a pod's kernel asks by itself are told from those of somebody's packets."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from bpf import LIBRARY
from lab.node.topology import NodeSpec
from lab.scenario.scenario import InvariantsViolated, Scenario
from lab.watch import metrics
from tests.lab.labs import unique_name
from tests.lab.wires import ip

pytestmark = pytest.mark.privileged

LINK_LOCAL, GLOBAL = "fe80::99", "fd00:10:244::99"
DROPPED = (150, metrics.EGRESS)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Our sources, with Cilium's answer to a solicitation for somebody unknown: it is dropped."""
    library = shutil.copytree(LIBRARY, tmp_path / "bpf")
    source = library / "bpf_lxc.c"
    answer = "\tret = nd_write_advert(ctx, &ip, &msg, &mac);\n"
    drop = "\tif (((const __u8 *)msg.target)[15] == 0x99)\n\t\treturn -150;\n"
    assert answer in source.read_text()
    source.write_text(source.read_text().replace(answer, drop + answer))
    return Path(library)


def ask(scenario: Scenario, address: str) -> int:
    """Have a pod's kernel check whether a neighbour is still there, and return how often that was dropped."""
    netns = str(scenario.node.netns("pod-1"))
    before = dropped(scenario)
    ip(netns, "neigh", "replace", address, "dev", "eth0", "lladdr", "02:00:00:00:00:99", "nud", "probe")
    deadline = time.monotonic() + 10
    while dropped(scenario) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ip(netns, "neigh", "delete", address, "dev", "eth0")
    time.sleep(0.2)
    return dropped(scenario) - before


def dropped(scenario: Scenario) -> int:
    return metrics.packets(scenario.node).get(DROPPED, 0)


def test_solicitations_of_the_kernel_for_link_local_addresses_may_be_dropped(library: Path) -> None:
    with Scenario(NodeSpec(unique_name(), pods=1), library=library) as scenario:
        assert ask(scenario, LINK_LOCAL) > 0


def test_all_other_drops_of_unknown_targets_are_violations(library: Path) -> None:
    """Beside those that are excused, and to the packet."""
    with Scenario(NodeSpec(unique_name(), pods=1), library=library) as scenario:
        own, others = ask(scenario, LINK_LOCAL), ask(scenario, GLOBAL)
        with pytest.raises(InvariantsViolated) as caught:
            scenario.finish()
    assert min(own, others) > 0
    (violation,) = caught.value.violations
    words = f"{own + others} packets dropped as Unknown L3 target address (150, egress) instead of 0, and up to "
    assert violation.what == f"{words}{own} solicitations of the kernel"

"""unchecked.py: a pod is checked by its egress program, and by nothing that is attached in its place."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from datapath.endpoint import Attachment
from datapath.kernel import tcx
from datapath.kernel.hooks import Direction
from datapath.reload.plans import OVERLAY_SUBJECT
from lab.agent.agent import Agent
from lab.agent.unchecked import PodsUnchecked, unchecked_pods
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.datapath.support import NEEDS_TCX
from tests.lab.labs import ROOT, unique_name

pytestmark = pytest.mark.privileged

SWITCHING = """
import os, signal, sys
from datapath.endpoint import Attachment
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.scenario.gate import Gate
with Agent(Node.open(sys.argv[1]), attach=Attachment.TCX) as agent:
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    agent.on_reload = lambda plan: Gate(die, after="detach egress") if plan.subject == "pod-1" else None
    agent.set_endpoint_routes(False)
"""


@NEEDS_TCX
def test_a_link_that_passes_all_packets_on_checks_none() -> None:
    """A killed switch of the routing mode leaves it at the egress hook: the commit would have detached it."""
    spec = NodeSpec(unique_name("unchecked"), pods=1, tunnel=True, endpoint_routes=True)
    with Node(spec) as node, Agent(node, attach=Attachment.TCX) as agent:
        agent.start()
        assert unchecked_pods(node) == ()
        done = subprocess.run([sys.executable, "-c", SWITCHING, node.name], cwd=ROOT, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        (left,) = tcx.programs(agent.config.netns, node.pod("pod-1").ifindex, Direction.EGRESS)
        assert left.name == "cil_nothing"
        assert "pod-1" in unchecked_pods(node)
        with pytest.raises(PodsUnchecked, match="pod-1"):
            agent.reload(OVERLAY_SUBJECT)
        agent.reload_all()
        assert unchecked_pods(node) == ()

"""Connections that ended are forgotten between cases: no look at a node takes longer than the one before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datapath.base.mapnames import CT_ANY4
from datapath.kernel.map import open_pin
from datapath.reload.connections import lifetime_of
from lab.abi.conntrack import CtTuple
from lab.agent import collector
from lab.node.topology import NodeSpec
from lab.proof.action import RATE
from lab.proof.ended import EndedConnections
from lab.proof.watched import unanswered
from lab.scenario.scenario import Scenario
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

PORTS = range(1, 6)


def test_those_that_ended_go_and_those_in_use_stay() -> None:
    """What the node had at the beginning stays as well: its end is held to that."""
    with Scenario(NodeSpec(unique_name("ended"), pods=2), bursts="none", rate=RATE) as scenario:
        pins = scenario.agent.config.globals
        ended = EndedConnections(pins)
        before = collector.keys(pins)
        with open_pin(pins / CT_ANY4) as table:
            used, value = max(table.items(), key=lambda item: lifetime_of(item[1]))
            silent = [replace(CtTuple.unpack(used), sport=port).pack() for port in PORTS]
            for key in silent:
                table.update(key, value[:32] + (lifetime_of(value) - 50).to_bytes(4, "little") + value[36:])
        assert unanswered(scenario) == []
        begun = collector.keys(pins)
        assert begun.issuperset(silent)
        ended.forget()
        assert begun - collector.keys(pins) == set(silent)
        assert before <= collector.keys(pins)
        assert unanswered(scenario) == []

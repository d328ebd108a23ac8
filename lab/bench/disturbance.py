"""What traffic notices of what is done to a node: the worst delay, what is lost, how long it took.

No system call is stopped, unlike in `reloadlab prove` and `upgrade`: the times are those of a node that is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.node.node import Node
from lab.traffic.defaults import RATE, default_flows, flows_of_each
from lab.traffic.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Disturbance:
    """The seconds that it took, the worst delay of a packet in seconds, and how many packets were lost.

    `starved` is the share of the time, 0 to 1, in which the traffic got no CPU: delays of then are not seen.
    """

    took: float
    worst_delay: float
    lost: int
    starved: float


def disturb(node: Node, do: Callable[[], object]) -> Disturbance:
    """Do something while traffic of all kinds runs on a node without policies; TrafficError if it cannot run."""
    # Without a policy nothing is denied.
    flows = [flow for flow in (*default_flows(node), *flows_of_each(node)) if not flow.denied]
    with Traffic(flows, rate=RATE) as traffic:
        begin = time.monotonic()
        do()
        took = time.monotonic() - begin
        report = traffic.stop()
    worst = max(flow.delays.worst_ns for flow in report.flows)
    span = max(report.stopped_ns - report.started_ns, 1)
    return Disturbance(took, worst / 1e9, report.lost, report.starved_ns / span)

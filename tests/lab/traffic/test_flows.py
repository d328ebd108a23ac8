"""Flows that make no sense are refused before anything is started for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab.traffic.flows import Flow, TrafficError, check_flows

FLOW = Flow("a", "/n1", "10.0.0.1", "/n2", "10.0.0.2")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param([FLOW, FLOW], "flow a: the name is taken twice", id="same name"),
        pytest.param([replace(FLOW, source_ip="fd00::1")], "different IP versions", id="mixed families"),
        pytest.param([replace(FLOW, target_ip="pod-1")], "'pod-1' does not appear to be an IPv4", id="no address"),
        pytest.param([replace(FLOW, port=0)], "port 0 is not within", id="port"),
        pytest.param([replace(FLOW, sizes=(64, 0))], "1 to 65000 bytes, not 0", id="no payload"),
        pytest.param([replace(FLOW, denied=True, refused=True)], "not denied can be refused", id="denied and refused"),
        pytest.param([replace(FLOW, protocol="icmp", refused=True)], "only packets of UDP", id="echo refused"),
        pytest.param([replace(FLOW, protocol="tcp", denied=True)], "a denied flow is UDP or ICMP", id="denied TCP"),
        pytest.param([replace(FLOW, protocol="sctp")], "'sctp' is none of udp, tcp, icmp", id="protocol"),  # type: ignore[arg-type]
    ],
)
def test_flows_that_make_no_sense(bad: list[Flow], words: str) -> None:
    with pytest.raises(TrafficError, match=words):
        check_flows(bad)

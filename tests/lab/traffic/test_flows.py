"""The values of traffic: flows that make no sense, and what a report says of what happened."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lab.traffic.flows import (
    Break,
    Flow,
    LostPacket,
    Stall,
    TcpReport,
    TrafficError,
    TrafficReport,
    UdpReport,
    check_flows,
)

FLOW = Flow("a", "/n1", "10.0.0.1", "/n2", "10.0.0.2")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param([FLOW, FLOW], "flow a: the name is taken twice", id="same name"),
        pytest.param([replace(FLOW, source_ip="fd00::1")], "different IP versions", id="mixed families"),
        pytest.param([replace(FLOW, target_ip="pod-1")], "'pod-1' does not appear to be an IPv4", id="no address"),
        pytest.param([replace(FLOW, port=0)], "port 0 is not within", id="port"),
    ],
)
def test_flows_that_make_no_sense(bad: list[Flow], words: str) -> None:
    with pytest.raises(TrafficError, match=words):
        check_flows(bad)


def sample() -> TrafficReport:
    lost = (LostPacket(3, 1000, "request"), LostPacket(4, 2000, "reply", "ENETUNREACH"))
    return TrafficReport(
        started_ns=1,
        stopped_ns=9,
        longest_pause_ns=5,
        cpu_ns=7,
        udp=(UdpReport("u", 10, 9, 8, 0, lost, 1, 2, 3, 4, 5, 6),),
        tcp=(TcpReport("t", 10, 8, 1, 1, 640, 512, 2, 11, (Stall(1, None),), Break(6, "ECONNRESET", "target")),),
    )


def test_report_survives_json() -> None:
    report = sample()
    assert TrafficReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert (report.sent, report.received, report.lost) == (20, 16, 2)


def test_losses_are_attributed_by_time() -> None:
    report = sample()
    assert report.lost_between(0, 999) == []
    assert report.lost_between(1000, 1999) == [("u", LostPacket(3, 1000, "request"))]


def test_problems_name_the_flow_and_what_happened() -> None:
    assert sample().problems() == [
        "u: 2 of 10 packets lost, the first is request 3",
        "u: 1 duplicates",
        "u: 2 reordered",
        "u: 3 detours",
        "u: 4 icmp errors",
        "u: 5 socket drops",
        "t: connection broken: ECONNRESET at the target",
        "t: stalled 1 times",
        "t: 1 echoes differ from their record",
    ]

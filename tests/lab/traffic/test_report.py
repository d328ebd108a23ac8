"""What a report says of what happened, and when."""

from __future__ import annotations

import json
from dataclasses import replace

from lab.traffic.report import Connections, Delays, Event, Finding, FlowReport, LostPacket, Pause, TrafficReport


def sample() -> TrafficReport:
    lost = (LostPacket(3, 1000, "request"), LostPacket(4, 2000, "reply", "ENETUNREACH"))
    events = (Event("duplicate", 1500), Event("detour", 1600), Event("detour", 1550), Event("late", 1, "250 ms"))
    return TrafficReport(
        started_ns=1,
        stopped_ns=9,
        longest_pause_ns=5,
        cpu_ns=7,
        late_after_ns=200,
        starved=(Pause(2, 5), Pause(7, 8)),
        flows=(
            FlowReport("u", "udp", 10, 9, 8, 0, lost, events, Delays(8, 1, 2, 3, 4, 5, ((7, 8),))),
            FlowReport(
                name="t",
                protocol="tcp",
                sent=10,
                delivered=9,
                received=8,
                in_flight=0,
                lost=(LostPacket(6, 2500, "reply"),),
                events=(Event("reset", 3000, "ECONNRESET at the target"), Event("retransmit", 2500)),
                connections=Connections(1, 640, 512, 2, 1),
            ),
            FlowReport("d", "udp", 20, 0, 0, 0, (LostPacket(1, 7, "request", "ENETUNREACH"),), denied=True),
        ),
    )


def test_report_survives_json() -> None:
    report = sample()
    assert TrafficReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_totals_count_segments_of_tcp_as_lost() -> None:
    report = sample()
    assert (report.sent, report.received, report.lost, report.starved_ns) == (40, 16, 4, 4)


def test_losses_are_attributed_by_time() -> None:
    report = sample()
    assert report.lost_between(8, 999) == []
    assert report.lost_between(1000, 1999) == [("u", LostPacket(3, 1000, "request"))]


def test_findings_name_the_flow_what_happened_and_when() -> None:
    assert sample().findings() == [
        Finding("u", "lost", "2 of 10 packets lost (ENETUNREACH), the first is request 3", (1000, 2000)),
        Finding("u", "duplicate", "1 duplicates", (1500,)),
        Finding("u", "detour", "2 took another path", (1550, 1600)),
        Finding("u", "late", "1 held too long: 250 ms", (1,)),
        Finding("t", "lost", "1 segment lost, the first is reply 6", (2500,)),
        Finding("t", "reset", "1 connections broken: ECONNRESET at the target", (3000,)),
        Finding("t", "retransmit", "1 segments retransmitted", (2500,)),
        Finding("d", "lost", "1 of 20 packets lost (ENETUNREACH), the first is request 1", (7,)),
    ]
    assert str(sample().findings()[1]) == "u: 1 duplicates"


def test_another_path_on_purpose_is_no_finding() -> None:
    kinds = [finding.kind for finding in sample().findings(other_path=True)]
    assert kinds == ["lost", "duplicate", "late", "lost", "reset", "retransmit", "lost"]


def test_what_a_policy_must_have_dropped_is_what_left_and_did_not_arrive() -> None:
    report = sample()
    assert report.denied == {"d": 19}
    leaking = replace(report.flow("d"), events=(Event("leaked", 4), Event("leaked", 5)))
    assert replace(report, flows=(leaking,)).denied == {"d": 17}
    assert [str(finding) for finding in leaking.findings()][1] == "d: 2 of 20 packets passed although they are denied"

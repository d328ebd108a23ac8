from __future__ import annotations

import json
import struct

import pytest

from lab.watch.events import Drop, Lost, Trace, Unknown, Verdict, decode, to_json

MACS = bytes(12)


def header(kind: int, subtype: int, captured: int) -> bytes:
    return struct.pack("<BBHIIHH", kind, subtype, 101, 0xABCD, 1500, captured, 1)


def ipv4(protocol: int, rest: bytes, offset: int = 0) -> bytes:
    ip = bytes((0x45, 0, 0, 0, 0, 0)) + offset.to_bytes(2, "big") + bytes((64, protocol, 0, 0))
    return MACS + b"\x08\x00" + ip + bytes((10, 0, 0, 1)) + bytes((10, 0, 0, 2)) + rest


def ipv6(protocol: int, rest: bytes) -> bytes:
    address = b"\xfd" + bytes(14)
    return MACS + b"\x86\xdd" + bytes((0x60, 0, 0, 0, 0, 0, protocol, 64)) + address + b"\1" + address + b"\2" + rest


PORTS = struct.pack("!HH", 40000, 80)
TCP = ipv4(6, PORTS + bytes(9) + bytes((0x12,)) + bytes(6))

DROP = header(1, 133, len(TCP)) + struct.pack("<IIIHBbI", 1001, 1002, 102, 7, 1, 0, 17) + TCP
TRACE = header(4, 0, len(TCP)) + struct.pack("<IIHBBI16s", 1001, 1002, 102, 2, 0, 17, bytes(16)) + TCP
VERDICT = header(5, 0, len(TCP)) + struct.pack("<IiHBBI", 1001, -181, 80, 6, 1 | 2 << 3, 0) + TCP


@pytest.mark.parametrize(
    ("data", "line"),
    [
        pytest.param(
            DROP,
            "xx drop (Policy denied) flow 0xabcd to endpoint 102, ifindex 17, file bpf_host.c:7, identity 1001->1002: "
            "10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN, ACK",
            id="drop",
        ),
        pytest.param(
            TRACE,
            "-> endpoint 102 flow 0xabcd, identity 1001->1002 state reply ifindex 17: "
            "10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN, ACK",
            id="trace",
        ),
        pytest.param(
            VERDICT,
            "Policy verdict log: flow 0xabcd local EP ID 101, remote ID 1001, proto 6, ingress, action deny, "
            "match L3-L4, 10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN, ACK",
            id="verdict",
        ),
        pytest.param(b"\x02" + bytes(20), "unknown event 2, 21 bytes", id="debug"),
        pytest.param(DROP[:30], "unknown event 1, 30 bytes", id="cut off"),
        pytest.param(b"", "unknown event 0, 0 bytes", id="nothing"),
    ],
)
def test_events_are_printed_as_by_cilium_monitor(data: bytes, line: str) -> None:
    assert str(decode(data)) == line


def test_an_unknown_file_is_a_number() -> None:
    assert "file unknown(99):7," in str(decode(DROP[:30] + bytes((99,)) + DROP[31:]))


def test_padding_is_not_part_of_the_packet() -> None:
    assert decode(DROP + bytes(7)) == decode(DROP)


@pytest.mark.parametrize(
    ("point", "words"), [(3, "-> stack"), (5, "<- endpoint 101"), (9, "<- overlay"), (99, "-> 99")]
)
def test_observation_points_by_their_words(point: int, words: str) -> None:
    assert str(decode(TRACE[:1] + bytes((point,)) + TRACE[2:])).startswith(f"{words} flow 0xabcd, ")


def test_a_verdict_is_allowed_proxied_or_denied() -> None:
    for verdict, action in ((0, "allow"), (10001, "allow"), (-133, "deny")):
        event = decode(header(5, 0, 0) + struct.pack("<IiHBBI", 1, verdict, 0, 0, 2, 0))
        assert isinstance(event, Verdict)
        assert (event.direction, event.match) == ("egress", "none")
        assert f"action {action}" in str(event)


def test_json_names_the_type_and_the_reason() -> None:
    found = [to_json(decode(data)) for data in (DROP, TRACE, VERDICT)] + [to_json(Lost(3, 1)), to_json(Unknown(2, 4))]
    assert [item["event"] for item in json.loads(json.dumps(found))] == ["drop", "trace", "verdict", "lost", "unknown"]
    assert (found[0]["meaning"], found[0]["file"], found[0]["line"]) == ("Policy denied", "bpf_host.c", 7)
    assert str(Lost(3, 1)) == "CPU 1: Lost 3 events"
    assert isinstance(decode(DROP), Drop)
    assert isinstance(decode(TRACE), Trace)


def later(message: bytes, version: int, more: int, size: int) -> bytes:
    """Return a message as a later release writes it: another version, `more` bytes behind the first `size`."""
    return message[:14] + struct.pack("<H", version) + message[16:size] + b"\xee" * more + message[size:]


@pytest.mark.parametrize(
    ("message", "version", "more", "size"),
    [
        pytest.param(DROP, 2, 4, 36, id="drop of 1.18"),
        pytest.param(DROP, 3, 12, 36, id="drop of 1.19"),
        pytest.param(TRACE, 2, 8, 48, id="trace of 1.19"),
        pytest.param(VERDICT, 1, 8, 32, id="verdict of 1.19"),
    ],
)
def test_messages_of_later_releases_are_read(message: bytes, version: int, more: int, size: int) -> None:
    assert decode(later(message, version, more, size)) == decode(message)
    assert decode(later(message, version, more, size) + bytes(7)) == decode(message), "padded to 8 bytes"


def test_a_message_of_an_unknown_version_is_not_guessed() -> None:
    assert decode(later(DROP, 9, 12, 36)) == Unknown(1, len(DROP) + 12)

"""What loaders answer: what is taken from it, and what is refused with a reason."""

from __future__ import annotations

import json

import pytest

from datapath.base.timing import Interval
from lab.loaders.protocol import ABILITIES, BadAnswer, Done, Greeting, done, error_of, greeting, parse

HELLO = {"ok": True, "name": "mine", "supports": ["pod"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty"),
        (b"loaded", "answered 'loaded', which is not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", 'no object with "ok"'),
        (b'{"done": true}', 'no object with "ok"'),
        (b'{"ok": 1}', 'no object with "ok"'),
        (b'{"ok": false}', 'without an "error"'),
        (b'{"ok": false, "error": " "}', 'without an "error"'),
        (b"x" * 500, "x..."),
    ],
)
def test_nonsense_is_refused(line: bytes, reason: str) -> None:
    with pytest.raises(BadAnswer) as raised:
        parse(line)
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 200


def test_an_error_is_one_line() -> None:
    assert error_of(parse(b'{"ok": true}')) is None
    assert error_of(parse(json.dumps({"ok": False, "error": "no\n  room\n"}).encode())) == "no; room"


def test_a_greeting_says_what_a_loader_can_do() -> None:
    assert greeting(HELLO) == Greeting("mine", frozenset({"pod"}))
    made = greeting(HELLO | {"version": 1, "supports": list(ABILITIES), "compiles": True})
    assert (made.supports, made.compiles, made.objects) == (frozenset(ABILITIES), True, "templates")
    assert greeting(HELLO | {"compiles": True, "objects": "none"}).objects == "none"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "speaks version 2 of the protocol, this reloadlab version 1"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": 3}, "name"),
        ({"supports": "pod"}, "supports"),
        ({"supports": [1]}, "supports"),
        ({"supports": ["endpoint_routes"]}, "endpoint_routes"),
        ({"compiles": "yes"}, "compiles"),
        ({"objects": "elf"}, "objects"),
        ({"objects": "none"}, "for a loader that compiles"),
    ],
)
def test_a_wrong_greeting_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        greeting(HELLO | change)


def test_spans_and_warnings_are_taken_over() -> None:
    answer = {"ok": True, "spans": [{"name": "load", "start_ns": 5, "end_ns": 9}], "warnings": ["slow"]}
    assert done(answer, 77) == Done((("load", Interval(77, 5, 9)),), ("slow",))
    assert done({"ok": True}, 77) == Done()


@pytest.mark.parametrize(
    "answer",
    [
        {"spans": {}},
        {"spans": ["load"]},
        {"spans": [{"name": "load"}]},
        {"spans": [{"name": "load", "start_ns": 9, "end_ns": 5}]},
        {"spans": [{"name": "load", "start_ns": 0.5, "end_ns": 5}]},
        {"warnings": "slow"},
        {"warnings": [1]},
    ],
)
def test_wrong_spans_and_warnings_are_refused(answer: dict[str, object]) -> None:
    with pytest.raises(BadAnswer):
        done({"ok": True} | answer, 77)

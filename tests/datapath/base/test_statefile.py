from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from datapath.base.statefile import DamagedFile, WrongContent, read_json, read_typed, typed, write_json


@dataclass(frozen=True)
class Inner:
    address: IPv4Address
    names: frozenset[str]


@dataclass(frozen=True)
class Outer:
    number: int
    text: str | None
    pair: tuple[tuple[str, int], ...]
    inner: Inner


WHOLE = {"number": 1, "text": None, "pair": [["a", 1]], "inner": {"address": "10.0.0.1", "names": ["x", "y"]}}


def test_document_becomes_a_value() -> None:
    assert typed(Outer, WHOLE) == Outer(1, None, (("a", 1),), Inner(IPv4Address("10.0.0.1"), frozenset("xy")))
    assert typed(dict[str, int], {"a": 1}) == {"a": 1}


def test_a_number_with_a_fraction_may_be_whole_but_not_without_end() -> None:
    assert typed(tuple[float, ...], [1, 2.5]) == (1.0, 2.5)
    for wrong in (float("inf"), float("nan"), 10**400, True, "1"):
        with pytest.raises(WrongContent, match=r"^\[0\] is not a number$"):
            typed(tuple[float, ...], [wrong])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"number": "1"}, "number is not a number"),
        ({"number": True}, "number is not a number"),
        ({"text": 1}, "text is not text"),
        ({"pair": [["a"]]}, "pair[0] has 1 items, not 2"),
        ({"pair": [["a", "b"]]}, "pair[0][1] is not a number"),
        ({"pair": "ab"}, "pair is not a list"),
        ({"inner": None}, "inner is not an object"),
        ({"inner": {"address": "10.0.0.1"}}, "no inner.names"),
        ({"inner": {"address": 1, "names": []}}, "inner.address is not an IPv4 address"),
        ({"more": 1}, "unknown more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_content_says_where(change: dict[str, object], reason: str) -> None:
    with pytest.raises(WrongContent) as wrong:
        typed(Outer, WHOLE | change)
    assert wrong.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"{", "not JSON"), (b"\xff\x00\xfe\xfd", "not UTF-8"), (b"[" * 100_000, "not JSON")],
    ids=["empty", "half", "binary", "deep"],
)
def test_damaged_file_is_told_by_its_path(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=f"{path} is damaged: {reason}"):
        read_json(path)
    with pytest.raises(DamagedFile):
        read_typed(dict[str, int], path)


def test_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "file")


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["file"]


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(200):
                write_json(path, [number] * 1000)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = read_json(path)
    assert isinstance(found, list)
    assert len(set(found)) == 1

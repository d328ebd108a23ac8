from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lab.results import result as module
from lab.results.machine import this_machine
from lab.results.result import BadResult, Better, Course, Load, Series, read_result, to_text, words
from tests.lab.results.samples import result, times

WHOLE = result(
    Series("reload", "s", times(1), side="A", group="rounds", positions=(0, 1) * 15, block=5),
    Series('UDP [ 1 ], a "b"', "packets/s", (1e6, 5e-324), better=Better.HIGHER),
    Series("tc", "s", (), refusal="libbpf: no"),
    sides=("A", "B"),
    course=Course(rounds=5, warm_up=1, discarded=3, seed=7),
    load=Load((0.1, 0.2, 0.3), (), None),
    notes={"hooks": "cil_from_container ingress"},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.json"
    path.write_text(to_text(WHOLE))
    return path


def test_every_value_comes_back(path: Path) -> None:
    assert read_result(path) == WHOLE


def test_a_series_stands_on_one_line(path: Path) -> None:
    assert sum('"values": [' in line and line.endswith("],") for line in path.read_text().splitlines()) == 3


def changed(path: Path, **changes: Any) -> Path:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))
    return path


WARM = {"rounds": 0, "warm_up": 30, "discarded": 0, "seed": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "has format 2, this version reads 1: measure again"),
        ({"format": "x"}, "has format 'x', this version reads 1: measure again"),
        ({"complete": False}, "is of a measurement that was cut short: measure again"),
        ({"series": []}, "holds no value: measure again"),
        ({"series": [{"name": "x"}]}, "holds no result: no series[0].better, no series[0].block, "),
        ({"seconds": "long"}, "holds no result: seconds is not a number"),
        ({"seconds": float("inf")}, "holds no result: seconds is not a number"),
        ({"seconds": 10**400}, "holds no result: seconds is not a number"),
        ({"more": 1}, "holds no result: unknown more"),
        ({"started": "9999-12-31T23:59:59-14:00"}, "holds no result: started: date value out of range"),
        ({"started": "soon"}, "holds no result: started: Invalid isoformat string: 'soon'"),
        ({"course": WARM}, "holds no result: reload: 30 values, and 30 rounds of warm-up"),
        ({"course": {**WARM, "warm_up": -1}}, "holds no result: -1 rounds of warm-up"),
        ({"subjects": {}}, "holds no result: no subject: it does not say what was measured"),
        ({"subjects": {"B": {}}}, "holds no result: reload: of side 'A', which is none of the subjects"),
    ],
)
def test_what_is_not_a_result_is_one_line(path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadResult) as caught:
        read_result(changed(path, **changes))
    assert str(caught.value).startswith(f"{path} {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ({"block": 4}, "holds no result: reload: 30 values are no blocks of 4"),
        ({"block": 0}, "holds no result: reload: 30 values are no blocks of 0"),
        ({"positions": [1]}, "holds no result: reload: 30 values and 1 positions"),
        ({"better": "up"}, "holds no result: series[0].better is not one of lower, higher"),
        ({"values": [1, True]}, "holds no result: series[0].values[1] is not a number"),
    ],
)
def test_a_series_that_contradicts_itself_is_one_line(path: Path, series: dict[str, Any], said: str) -> None:
    first = json.loads(path.read_text())["series"][0]
    with pytest.raises(BadResult) as caught:
        read_result(changed(path, series=[first | series]))
    assert str(caught.value) == f"{path} {said}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no result: empty"),
        (b"\x7fELF\xff", "holds no result: not UTF-8"),
        (b"[1]", "holds no result of `reloadlab bench --out`"),
        (b'{"format": 3, "scenarios": []}', "holds no result of `reloadlab bench --out`"),
        (to_text(WHOLE).encode()[:500], "holds no result: not JSON ("),
        (b"[" * 100_000, "holds no result: not JSON ("),
    ],
    ids=["empty", "binary", "list", "run.json", "truncated", "deep"],
)
def test_other_files_are_one_line(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    with pytest.raises(BadResult) as caught:
        read_result(path)
    assert str(caught.value).startswith(f"{path} {said}")


def test_what_cannot_be_read_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadResult, match=r"is not a file$"):
        read_result(path.parent)
    with pytest.raises(BadResult, match=r"none: No such file or directory$"):
        read_result(path.parent / "none")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(BadResult, match=r"is not a file$"):
        read_result(path.parent / "pipe")
    monkeypatch.setattr(module, "LARGEST", 100)
    with pytest.raises(BadResult, match=r"MiB; a result has at most 0$"):
        read_result(path)


def test_machine_says_what_the_kernel_says() -> None:
    found = this_machine()
    assert found.kernel == os.uname().release
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.clock in Path("/sys/devices/system/clocksource/clocksource0/available_clocksource").read_text()
    assert found.mitigations.keys() == {path.name for path in Path("/sys/devices/system/cpu/vulnerabilities").iterdir()}


def test_options_become_words_and_those_not_given_are_left_out() -> None:
    given = {"pods": 2, "routes": True, "other": False, "workers": (1, 2), "loader": None, "attach": ""}
    assert words(given) == {"pods": "2", "routes": "yes", "other": "no", "workers": "1 2"}

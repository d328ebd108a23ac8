from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.vm.survey import _OF_THE_SILENCE, Check, Survey, _Guest, merged


class Played(_Guest):
    """A guest whose commands answer: all is well, but for those that fail."""

    def __init__(self, output: Path, *failing: str) -> None:
        super().__init__(output, 60)
        self.failing = failing

    def _call(self, *words: str) -> tuple[int, str, str]:
        if words[0] in self.failing:
            return 1, "", f"reloadlab: no {words[0]}"
        if words[0] == "doctor":
            states = {"tcx": "ok", "netkit": "off"}
            return 0, json.dumps({"requirements": [{"name": n, "state": s} for n, s in states.items()]}), ""
        return 0, json.dumps([{"pods": [{}, {"ipv4": "10.244.0.4"}]}]) if words[0] == "up" else "{}", ""


def test_a_survey_is_good_if_nothing_failed() -> None:
    good = Survey("6.1", "6.1.0", (Check("doctor", True),))
    assert good.good
    assert not Survey("6.1", "6.1.0", (Check("doctor", True), Check("up", False, "why"))).good
    assert not Survey("6.1", "6.1.0", (), failure="it hung").good


def checks(*names: str, good: bool = True) -> tuple[Check, ...]:
    return tuple(Check(name, good) for name in names)


def test_modes_that_a_call_does_not_try_stay_as_they_were() -> None:
    """Emulated, each takes minutes: the table of a kernel need not come from one machine."""
    before = Survey(
        "6.1", "6.1.0", checks("doctor", "up: plain", "down: plain", "up: tunnel", good=False), {"tcx": "off"}
    )
    other = Survey("6.12", "6.12.0", checks("doctor", "up: plain"))
    new = Survey("6.1", "6.1.0", checks("doctor", "up: plain"), {"tcx": "ok"})
    both = (*checks("doctor", "up: plain"), Check("up: tunnel", False))
    assert merged([before, other], new) == [Survey("6.1", "6.1.0", both, {"tcx": "ok"}), other]
    # In the order of modes, whichever was tried first.
    assert [check.name for check in merged([new], before)[0].checks] == [check.name for check in before.checks]


def test_nothing_stays_of_another_release() -> None:
    before = Survey("newest", "7.2.0", checks("doctor", "up: plain", "up: tunnel"))
    new = Survey("newest", "7.3.0", checks("doctor", "up: plain"))
    assert merged([before], new) == [new]


@pytest.mark.parametrize(
    ("failing", "bad"),
    [
        ((), []),
        (("down",), [["down: plain", "reloadlab: no down"]]),
        (("up", "down"), [["up: plain", "reloadlab: no up"]]),
    ],
)
def test_a_node_that_does_not_go_is_told(tmp_path: Path, failing: tuple[str, ...], bad: list[list[str]]) -> None:
    Played(tmp_path / "survey.json", *failing)._node("plain")
    checks = json.loads((tmp_path / "survey.json").read_text())["checks"]
    assert [[check["name"], check["message"]] for check in checks if not check["good"]] == bad


def test_what_the_kernel_has_not_is_not_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Played(tmp_path / "survey.json").run(["tcx", "netkit"])
    tried = {check["name"] for check in json.loads((tmp_path / "survey.json").read_text())["checks"]}
    assert {name for name in tried if name.startswith("up: ")} == {"up: tcx"}
    assert "skip up: netkit: this kernel has no netkit" in capsys.readouterr().out.splitlines()


def test_a_machine_that_stops_leaves_a_whole_file(tmp_path: Path) -> None:
    guest = Played(tmp_path / "survey.json")
    guest._node("plain")
    with (tmp_path / "survey.json").open() as before:
        guest._node("tunnel")
        assert len(json.load(before)["checks"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["survey.json"]


def test_a_command_without_an_end_is_given_up_before_the_machine_is(tmp_path: Path) -> None:
    """As long as it runs, the machine says nothing: with the same limit, it was killed and all the rest lost."""
    assert _OF_THE_SILENCE < 1
    guest = _Guest(tmp_path / "survey.json", 0.01)
    guest._try("doctor", "doctor", "--json")
    (check,) = json.loads((tmp_path / "survey.json").read_text())["checks"]
    assert (check["good"], check["message"]) == (False, "no end after 0.01 s")

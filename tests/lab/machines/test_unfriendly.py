"""What a machine can say that is broken or meant to harm: one line each here, and nothing is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.cli.machines_job import Packets
from lab.machines import session as session_module
from lab.machines.session import MachinesUnfit, Order, Session, prepare, sessions
from lab.machines.ssh import Route
from lab.machines.target import Target
from lab.machines.tree import Tree

TEXTS = ("architecture", "cpu_model", "governor", "turbo", "kernel", "kernel_build", "clock", "clang", "mcpu", "python")
FOUND: dict[str, Any] = {
    "identity": {"boot": "b", "host": "h", "network": 1, "kernel": "k"},
    "cpus": 3,
    "machine": {name: "" for name in TEXTS} | {"cpus": 3, "frequency_mhz": 0, "options": {}, "mitigations": {}},
    "slowness": 1,
    "requirements": [],
}
"""What the examination of a machine finds (lab.machines.examine)."""


@dataclass(frozen=True, slots=True)
class Local(Route):
    """A way to a shell here, with a script in place of what it is asked for."""

    script: str = ""

    def argv(self, *command: str) -> list[str]:
        return ["/bin/sh", "-c", self.script]


def says(*messages: object, last: Sequence[object] = ()) -> str:
    """Return a script that says all this, and the last of it when it is told that the run is over."""
    first, then = ("\n".join(map(json.dumps, each)) for each in (messages, last))
    return f"cat <<'END'\n{first}\nEND\ncat >/dev/null\ncat <<'END'\n{then}\nEND\n"


READY = {"ready": FOUND | {"sudo": False}}
ENDED = {"ended": ""}


@pytest.fixture
def packets(tmp_path: Path) -> Iterator[Path]:
    """Return where packets go; a file beside it must stay what it is."""
    (tmp_path / "mine").write_text("mine")
    yield tmp_path / "packets"
    assert (tmp_path / "mine").read_text() == "mine"


def run(script: str, directory: Path, packets: Path | None = None) -> tuple[list[str], Session]:
    """Return what is told of a run of a machine that says this, and its session."""
    told: list[str] = []
    wanted = [(Target("ssh", "a"), Local("a", None, None, script), Order("e", (Tree(directory, (), "key"),), "token"))]
    with sessions(wanted, directory, warn=told.append, packets=Packets(packets).write) as found:
        prepare(found, lambda _, text: told.append(text))
    return told, found[0]


def reason(script: str, directory: Path) -> str:
    with pytest.raises(MachinesUnfit) as caught:
        run(script, directory)
    (unfit,) = caught.value.unfit
    assert unfit.reason.isprintable()
    return unfit.reason


def test_what_it_dies_of_is_one_line(tmp_path: Path) -> None:
    assert reason("printf 'Traceback\\n\\033[2JError\\n' >&2; exit 1", tmp_path) == " [2JError"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"need": "../../etc"}, "it asks for files that do not go along"),
        ({"ready": None}, "it does not say what it is: "),
        ({"ready": READY["ready"] | {"cpus": "many"}}, "it does not say what it is: cpus is not a number"),
        ({"failed": "no\x1b]0;title\x07 room\nleft"}, "no ]0;title  room left"),
        ("[" * 100_000, "it says more than 0 MiB without an end of line"),
    ],
    ids=["need", "nothing", "wrong type", "terminal", "endless"],
)
def test_what_it_says_before_the_run_is_one_line(
    message: object, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LONGEST", 1 << 16)
    endless = isinstance(message, str)
    script = f"printf %s '{message}'; exec cat >/dev/null" if endless else says(message)
    assert reason(script, tmp_path).startswith(told)


def test_one_that_runs_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FIRST_WORD", 0.0)
    told = reason("echo Welcome; exec cat >/dev/null", tmp_path)
    assert told == "it is there, but runs nothing: see whether this ends: ssh a true"


def test_one_that_never_gets_ready_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PREPARATION", 0.0)
    told = reason(says({"say": "setting up"}), tmp_path)
    assert told == "it is not ready after 0 minutes; it said last: setting up; see what runs there"


def test_one_that_cannot_be_reached_is_told_while_others_get_ready(tmp_path: Path) -> None:
    """Their set-up takes minutes."""
    told: list[tuple[str, str]] = []
    flag = tmp_path / "told"
    waits = f"until [ -e {flag} ]; do sleep 0.05; done; {says(READY, last=(ENDED,))}"
    scripts = {"a": "echo no route >&2; exit 255", "b": waits}
    order = Order("e", (Tree(tmp_path, (), "key"),), "token")
    wanted = [(Target("ssh", name), Local(name, None, None, script), order) for name, script in scripts.items()]

    def say(label: str, text: str) -> None:
        told.append((label, text))
        flag.touch()

    with sessions(wanted, tmp_path, warn=print, packets=Packets(None).write) as found, pytest.raises(MachinesUnfit):
        prepare(found, say)
    assert told == [("ssh:a", "it cannot be reached: no route")]


def test_its_cpus_are_no_reason_to_start_any_number_of_workers(tmp_path: Path) -> None:
    _, session = run(says({"ready": READY["ready"] | {"cpus": 10**9}}), tmp_path)
    assert session.workers == 1024


@pytest.mark.parametrize(("slowness", "seconds"), [(1, 10), (12, 120), (10**9, 500), (-1, 10)])
def test_workers_wait_for_a_slow_machine_as_long_as_it_is_slow(slowness: float, seconds: int, tmp_path: Path) -> None:
    _, session = run(says({"ready": READY["ready"] | {"slowness": slowness}}), tmp_path)
    assert f" -o ConnectTimeout={seconds} " in session.spec()


@pytest.mark.parametrize("name", ["../mine", "/mine", "", "..", ".hidden", 7])
def test_packets_are_files_of_their_directory(name: object, tmp_path: Path, packets: Path) -> None:
    said = {"packets": name, "content": "AA=="}
    told, _ = run(says(READY, last=(said, {"packets": "b", "content": "?"}, ENDED)), tmp_path, packets)
    without_name, unreadable = (
        "it sends packets without a name that a file may have",
        "it sends packets that cannot be read: b",
    )
    assert told == [f"ssh:a: {without_name}; {unreadable}"]
    assert not packets.exists()


def test_packets_that_nobody_asked_for_are_not_written(tmp_path: Path, packets: Path) -> None:
    asked, _ = run(says(READY, last=({"packets": "b", "content": "AA=="}, ENDED)), tmp_path, packets)
    assert (asked, (packets / "ssh-a" / "b").read_bytes()) == ([], b"\0")
    told, _ = run(says(READY, last=({"packets": "b", "content": "AA=="}, ENDED)), tmp_path)
    assert told == ["ssh:a: it sends packets that were not asked for"]


def test_one_that_never_stops_talking_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FAREWELL", 0.2)
    told, _ = run(says(READY) + "exec yes {}", tmp_path)
    assert told == ["ssh:a: it did not say that nothing is left there; the next run removes what is"]

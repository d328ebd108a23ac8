"""`run --kernel`: what the guest is told, and one result of several."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lab.cli.kernels_job import (
    KernelResult,
    cleared,
    command,
    document,
    document_of,
    keep,
    matrix,
    print_results,
    tell_failure,
    worst,
)
from lab.cli.main import _split, build_parser
from lab.vm.kernels import Kernel
from lab.vm.machine import MachineFailed
from lab.vm.session import GUEST_OUTPUT


def words(*given: str) -> list[str]:
    """Return the guest's words for the command, after the interpreter and the module."""
    own, handed_on = _split(["run", *given])
    args = build_parser("run").parse_args(own)
    args.given, args.handed_on = own, handed_on
    told = command(args)
    return told[told.index("run") :]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--kernel", "6.1", "-k", "rollback"), ["-k", "rollback"]),
        (("--kernel=6.1,6.12", "--json", "--keep", "mine.py"), ["--keep", "mine.py"]),
        (("--kernel", "6.1", "--rounds", "0", "a.py", "b.py"), ["--rounds", "0", "a.py", "b.py"]),
        (("--out", "o", "--kernel-cpus", "2", "--kernel-silence", "9", "--kernel", "6.1"), []),
    ],
)
def test_the_guest_runs_what_was_given_but_for_what_concerns_this_machine(
    given: tuple[str, ...], told: list[str]
) -> None:
    assert words(*given) == ["run", *told, "--out", GUEST_OUTPUT]


def test_packets_and_options_of_pytest_are_handed_on() -> None:
    told = words("--kernel", "6.1", "--pcap", "p", "--junitxml", "j", "--", "-x", "--kernel")
    files = ["--pcap", f"{GUEST_OUTPUT}/pcap", "--junitxml", f"{GUEST_OUTPUT}/junit.xml"]
    assert told == ["run", "--out", GUEST_OUTPUT, *files, "--", "-x", "--kernel"]


def result(label: str, code: int = 0, failure: str = "", /, **outcomes: str) -> KernelResult:
    found: dict[str, Any] = {"scenarios": [{"name": name, "outcome": outcome} for name, outcome in outcomes.items()]}
    kernel = Kernel(label, f"{label}.0-amd64", Path("/v"), Path("/m"))
    return KernelResult(kernel, code, failure, 4.0, 60.0, None if failure else found)


def test_a_row_for_each_scenario_of_any_kernel() -> None:
    results = [result("6.1", a="passed", b="failed"), result("6.12", 1, b="passed", c="skipped")]
    assert dict(matrix(results)) == {
        "a": {"6.1": "passed", "6.12": None},
        "b": {"6.1": "failed", "6.12": "passed"},
        "c": {"6.1": None, "6.12": "skipped"},
    }


def test_the_worst_exit_code_counts() -> None:
    assert worst([result("6.1", 0), result("6.12", 2), result("7.3", 1)]) == 2
    assert worst([result("6.1", 0)]) == 0


def test_a_kernel_that_did_not_tell_its_end_is_in_the_document() -> None:
    written = document([result("6.1", a="passed"), result("6.12", 1, "it ended without a word")], complete=True)
    assert [row["failure"] for row in written["kernels"]] == ["", "it ended without a word"]
    assert [row["run"] for row in written["kernels"]] == ["6.1/run.json", None]
    assert written["scenarios"] == [{"name": "a", "outcomes": {"6.1": "passed", "6.12": None}}]


def test_the_table_has_a_column_for_each_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    name = "scenarios/test_host.py::test_host"
    print_results([result("6.1", 0, "", **{name: "passed"}), result("6.12", 1, "it ended without a word")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["scenario", "6.1", "6.12"], ["host:", "host", "passed", "-"]]
    assert lines[4:] == [
        "6.1 (6.1.0-amd64): 1 passed, exit code 0 after 60 s, up in 4.0 s",
        "6.12 (6.12.0-amd64): it ended without a word",
    ]


def test_the_result_of_the_run_before_is_none_of_this_one(tmp_path: Path) -> None:
    """As of a machine that did not boot."""
    assert document_of(tmp_path / "new", None) is None
    (tmp_path / "run.json").write_text('{"seconds": 1}')
    assert document_of(tmp_path, '{"seconds": 1}') is None
    assert document_of(tmp_path, '{"seconds": 2}') == document_of(tmp_path, None) == {"seconds": 1}


def test_files_of_the_run_before_are_gone_but_for_what_failed_in_it(tmp_path: Path) -> None:
    """A CI server would read them as those of a machine that did not boot."""
    assert cleared(tmp_path / "new") is None
    for name in ("run.json", "junit.xml", "summary.md", "report.html", "trace.json", "other"):
        (tmp_path / name).write_text(name)
    assert cleared(tmp_path) == "run.json"
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "other", "new"}


def test_of_a_machine_that_does_not_boot_the_files_for_ci_tell_the_error(tmp_path: Path) -> None:
    error = MachineFailed("6.1", "it said nothing for 180 s, apart from its kernel, and was killed", ["Kernel panic"])
    tell_failure(error, tmp_path, junit=False, summary=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "summary.md").write_text("what the machine wrote itself")
    tell_failure(error, tmp_path, junit=True, summary=True)
    (case,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    (found,) = (child for child in case if child.tag == "error")
    assert str(error) in (found.text or "")
    assert (tmp_path / "summary.md").read_text() == "what the machine wrote itself"


def test_files_are_kept_and_links_are_not(tmp_path: Path) -> None:
    left, place = tmp_path / "left", tmp_path / "place"
    (left / "pages").mkdir(parents=True)
    (left / "run.json").write_text("{}")
    (left / "pages" / "index.html").write_text("page")
    (left / "secret").symlink_to("/etc/hostname")
    os.mkfifo(left / "fifo")
    keep(left, place)
    found = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}
    assert found == {"run.json", "pages/index.html"}


@pytest.mark.privileged
def test_a_directory_for_which_there_is_no_room_is_lost_alone(tmp_path: Path) -> None:
    left, place = tmp_path / "left", tmp_path / "place"
    (left / "pcap").mkdir(parents=True)
    (left / "run.json").write_text("{}")
    (left / "pcap" / "a.pcap").write_bytes(b"a")
    place.mkdir()
    # The directory itself, and one file.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "full", place], timeout=60, check=True)
    try:
        assert keep(left, place) == [f"{place}/pcap is lost: No space left on device"]
        assert (place / "run.json").read_text() == "{}"
    finally:
        subprocess.run(["umount", place], timeout=60, check=True)

"""Whatever pytest collects has a record, and the record the right end, however the process ends that runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.scenario.recorder import Recorder
from lab.scenario.records import END, ERROR, FAILED, NOT_RUN, PASSED, RUNNING, SKIPPED, Record, read
from tests.nested import PYTEST

pytest_plugins = ["pytester"]

ENDINGS = """
import pytest

def test_passes():
    pass

def test_fails():
    assert 1 == 2, "\x1b[2Jclears the screen"

@pytest.fixture
def broken():
    raise ValueError("set-up")

def test_never_begins(broken):
    pass

@pytest.fixture
def leaves():
    yield
    raise ValueError("teardown")

def test_ends_badly(leaves):
    pass

def test_fails_twice(leaves):
    assert 3 == 4

def test_skipped():
    pytest.skip("not here")

@pytest.mark.skip(reason="not today")
def test_skipped_by_mark():
    pass

@pytest.mark.xfail(reason="known")
def test_expected():
    assert False

def test_expected_in_the_body():
    pytest.xfail("known as well")

@pytest.mark.xfail
def test_expected_without_a_reason():
    assert False

@pytest.mark.xfail(strict=True)
def test_unexpected():
    pass
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that is not there, nor is the one above it: the recorder makes both."""
    return tmp_path / "a" / "records"


def session(pytester: pytest.Pytester, directory: Path, *options: str) -> dict[str, Record]:
    """Run the suite in the current directory and return its records by the name of the test."""
    run_pytest(pytester, directory, *options)
    return records(directory)


def run_pytest(pytester: pytest.Pytester, directory: Path, *options: str) -> None:
    pytester.runpytest_subprocess(*PYTEST, "--reloadlab-record", str(directory), *options, timeout=60)


def records(directory: Path) -> dict[str, Record]:
    found = read(directory.glob("*.json"))
    return {record.name.rpartition("::")[2].rpartition("/")[2]: record for record in found}


def outcomes(found: dict[str, Record]) -> dict[str, str]:
    return {name: record.outcome for name, record in found.items()}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_end_is_told(pytester: pytest.Pytester, directory: Path, workers: str) -> None:
    pytester.makepyfile(test_ends=ENDINGS)
    found = session(pytester, directory, "-n", workers)
    assert outcomes(found) == {
        "test_passes": PASSED,
        "test_fails": FAILED,
        "test_never_begins": ERROR,
        "test_ends_badly": ERROR,
        "test_fails_twice": ERROR,
        "test_skipped": SKIPPED,
        "test_skipped_by_mark": SKIPPED,
        "test_expected": SKIPPED,
        "test_expected_in_the_body": SKIPPED,
        "test_expected_without_a_reason": SKIPPED,
        "test_unexpected": FAILED,
    }
    for name, words in {
        "test_fails": ["assert 1 == 2", "AssertionError:  [2Jclears the screen"],
        "test_never_begins": ["ValueError: set-up"],
        "test_ends_badly": ["ValueError: teardown"],
        "test_fails_twice": ["assert 3 == 4", "ValueError: teardown"],
        "test_skipped": ["Skipped: not here"],
        "test_skipped_by_mark": ["Skipped: not today"],
        "test_expected": ["Skipped: expected to fail: known"],
        "test_expected_in_the_body": ["Skipped: expected to fail: known as well"],
        "test_expected_without_a_reason": ["Skipped: expected to fail"],
        "test_passes": [],
    }.items():
        assert all(word in found[name].message for word in words), found[name].message
    assert found["test_passes"].message == ""
    assert "\n" not in found["test_expected"].message
    assert (directory / END).read_text() == "finished"


DEATHS = {
    "os._exit(0)": "os._exit(0)",
    "os._exit(1)": "os._exit(1)",
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "segfault": "ctypes.string_at(0)",
}


def suite_that_dies(death: str) -> str:
    others = "".join(f"def test_{number}():\n    pass\n\n" for number in range(3))
    return f"import ctypes, os\n\n{others}def test_dies():\n    {DEATHS[death]}\n\ndef test_last():\n    pass\n"


IN_A_TEARDOWN = """
import os, pytest

@pytest.fixture
def deadly():
    yield
    os._exit(0)

def test_dies(deadly):
    pass
"""
"""The test has passed by then, but what its fixtures would have found is not known."""


def test_a_worker_that_dies_is_an_error_of_its_test(pytester: pytest.Pytester, directory: Path) -> None:
    """However it dies, and also in a teardown; each death is in a file of its own."""
    files = {f"test_death_{number}.py": suite_that_dies(death) for number, death in enumerate(DEATHS)}
    files["test_teardown.py"] = IN_A_TEARDOWN
    for name, suite in files.items():
        (pytester.path / name).write_text(suite)
    run_pytest(pytester, directory, "-n", "2")
    found = {record.name.rpartition("/")[2]: record for record in read(directory.glob("*.json"))}
    dead = {f"{file}::test_dies" for file in files}
    assert {name for name, record in found.items() if record.outcome == ERROR} == dead
    assert {record.outcome for name, record in found.items() if name not in dead} == {PASSED}
    assert len(found) == 5 * len(DEATHS) + 1
    for name in dead:
        message = found[name].message
        assert re.fullmatch(rf"worker 'gw\d+' crashed while running '.*{name}'", message), message


@pytest.mark.parametrize("death", ["os._exit(0)", "SIGKILL"])
def test_a_session_that_dies_leaves_what_it_had(pytester: pytest.Pytester, directory: Path, death: str) -> None:
    pytester.makepyfile(test_dead=suite_that_dies(death))
    found = session(pytester, directory)
    assert outcomes(found) == {**{f"test_{n}": PASSED for n in range(3)}, "test_dies": RUNNING, "test_last": NOT_RUN}
    assert not (directory / END).exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_collected_but_never_run(pytester: pytest.Pytester, directory: Path, workers: str) -> None:
    pytester.makepyfile(test_stops="".join(f"def test_{n}():\n    assert {n} != 1\n\n" for n in range(6)))
    found = outcomes(session(pytester, directory, "-n", workers, "-x"))
    assert (found["test_0"], found["test_1"], found["test_5"]) == (PASSED, FAILED, NOT_RUN)
    assert len(found) == 6
    assert (directory / END).read_text() == "finished"


def test_interrupted_session_says_so(pytester: pytest.Pytester, directory: Path) -> None:
    pytester.makepyfile(test_stops="def test_waits():\n    raise KeyboardInterrupt\n\ndef test_after():\n    pass\n")
    found = session(pytester, directory)
    assert outcomes(found) == {"test_waits": RUNNING, "test_after": NOT_RUN}
    assert (directory / END).read_text() == "interrupted"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_that_cannot_be_collected_is_an_error(pytester: pytest.Pytester, directory: Path, workers: str) -> None:
    pytester.makepyfile(test_broken="import no_such_module\n", test_good="def test_good():\n    pass\n")
    found = session(pytester, directory, "-n", workers)
    assert found["test_broken.py"].outcome == ERROR
    assert "no_such_module" in found["test_broken.py"].message
    assert {"test_broken.py"} == {name for name, record in found.items() if record.outcome == ERROR}


def test_a_later_pass_does_not_hide_a_failure(pytester: pytest.Pytester, directory: Path) -> None:
    """The same test, collected twice."""
    pytester.makepyfile(
        test_twice="""
        from pathlib import Path

        def test_second_time():
            first = Path(__file__).with_name("first")
            assert first.exists() or first.write_text("")
        """
    )
    found = session(pytester, directory, "--keep-duplicates", "test_twice.py", "test_twice.py")
    assert outcomes(found) == {"test_second_time": FAILED}


def test_what_begins_again_has_not_passed_before_it_ends(tmp_path: Path) -> None:
    """As with a machine that is lost after the test and before its end, when what must hold is checked."""
    recorder = Recorder(tmp_path)
    recorder.pytest_runtest_logstart("a.py::test_b")
    for phase in ("setup", "call"):
        recorder.pytest_runtest_logreport(
            pytest.TestReport("a.py::test_b", ("a.py", 0, "test_b"), {}, "passed", None, phase)
        )
    recorder.pytest_runtest_logstart("a.py::test_b")
    assert outcomes(records(tmp_path)) == {"test_b": RUNNING}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_directory_that_cannot_be_made_is_a_wrong_call(
    pytester: pytest.Pytester, tmp_path: Path, workers: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    pytester.makepyfile("def test_good():\n    pass\n")
    result = pytester.runpytest_subprocess(*PYTEST, "-n", workers, "--reloadlab-record", str(file / "records"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --reloadlab-record {file}/records: Not a directory"])
    assert "Traceback" not in result.stderr.str()


def test_records_that_cannot_be_written_end_the_session(pytester: pytest.Pytester, directory: Path) -> None:
    pytester.makepyfile(
        f"""
        import shutil

        def test_good():
            shutil.rmtree({str(directory)!r})
        """
    )
    result = pytester.runpytest_subprocess(*PYTEST, "--reloadlab-record", str(directory), timeout=60)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert f"--reloadlab-record {directory}: No such file or directory" in result.stdout.str() + result.stderr.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()

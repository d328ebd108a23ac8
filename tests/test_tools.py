"""The scripts of tools/, run with a stand-in for sudo."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which the caller is not root, and sudo prints what it was asked for."""
    for name, script in (("id", "echo 1000"), ("sudo", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_sudo_keeps_every_variable_of_ours(path: str) -> None:
    done = subprocess.run(
        [ROOT / "tools" / "as-root", "command", "word"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kept, *command = done.stdout.splitlines()
    option, _, names = kept.partition("=")
    assert option == "--preserve-env"
    names_of_ours = (
        "BOXES",
        "CACHE",
        "CILIUM_BPF",
        "CLANG",
        "EXHAUSTIVE",
        "KERNELS",
        "LOADER",
        "LOADER_TIMEOUT",
        "RUN",
        "SLOWNESS",
    )
    ours = {f"RELOADLAB_{name}" for name in names_of_ours}
    assert set(names.split(",")) == {"CI", "SOURCE_DATE_EPOCH", *ours}
    assert command == ["PYTHONPYCACHEPREFIX=/var/cache/reloadlab/bytecode", "command", "word"]


def test_soak_counts_the_runs_that_are_not_green_and_keeps_what_they_said(tmp_path: Path) -> None:
    script = tmp_path / "tools" / "soak"
    script.parent.mkdir()
    script.write_bytes((ROOT / "tools" / "soak").read_bytes())
    stand_in = tmp_path / ".venv" / "bin" / "reloadlab"
    stand_in.parent.mkdir(parents=True)
    # Its second run is red.
    stand_in.write_text('#!/bin/sh\nmkdir -p "$5" && echo "ran $*" && [ "$5" != out/soak/2 ]\n')
    stand_in.chmod(0o755)
    suites = tmp_path / "scenarios"
    suites.mkdir()
    for name in ("one", "two", "three"):
        (suites / f"test_{name}.py").touch()
    done = subprocess.run(["sh", script, "3", "2", "-k", "x"], capture_output=True, text=True, timeout=60, check=False)
    assert [line.rpartition(", ")[0] for line in done.stdout.splitlines()] == [
        "run 1 of 3 (part 1, calm): green",
        "run 2 of 3 (part 1, busy): RED",
        "run 3 of 3 (part 2, calm): green",
        "3 runs",
    ]
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "3 runs, 1 of them not green")
    kept = tmp_path / "out" / "soak"
    assert (kept / "2" / "log").read_text() == (
        "ran run --rounds 0 --out out/soak/2 -k x scenarios/test_one.py scenarios/test_two.py\n"
    )
    assert not (kept / "1").exists()


def test_faults_runs_each_sweep_and_counts_those_that_found_something(tmp_path: Path) -> None:
    script = tmp_path / "tools" / "faults"
    script.parent.mkdir()
    script.write_bytes((ROOT / "tools" / "faults").read_bytes())
    stand_in = tmp_path / ".venv" / "bin" / "reloadlab"
    stand_in.parent.mkdir(parents=True)
    # The switches go wrong, and the two reloads at once are interrupted.
    stand_in.write_text('#!/bin/sh\ncase "$*" in *--switch*) exit 1 ;; *--two*ENDPOINTS*) exit 130 ;; esac\n')
    stand_in.chmod(0o755)
    (stand_in.parent / "python").symlink_to("/bin/true")
    argv = ["sh", str(script), "--sample", "3"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    ran = [line for line in done.stdout.splitlines() if line.startswith("reloadlab ")]
    assert ran[0] == "reloadlab faults pod-1 --errno all --sample 3"
    assert "reloadlab faults host --devices eth0 --cancel --sample 3" in ran
    assert ran[-1].startswith("reloadlab prove --two pod-1 host")
    assert done.returncode == 130
    stand_in.write_text('#!/bin/sh\ncase "$*" in *--switch*) exit 1 ;; esac\n')
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    switches = sum("--switch" in line for line in done.stdout.splitlines())
    assert done.stdout.splitlines()[-1].startswith(f"{switches} sweeps with cases that were not survived, ")


def test_ab_runs_counts_what_was_found_and_stops_at_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "tools" / "ab-runs"
    script.parent.mkdir()
    script.write_bytes((ROOT / "tools" / "ab-runs").read_bytes())
    stand_in = tmp_path / ".venv" / "bin" / "reloadlab"
    stand_in.parent.mkdir(parents=True)
    # The first finds nothing, the second something, the third cannot tell, the fourth fails.
    stand_in.write_text(
        '#!/bin/sh\necho "$*"\ncase "$6" in\n'
        + "".join(f"""*/{n}.json) echo ' "complete": {done},' > "$6"; exit {code} ;;\n""" for n, done, code in CODES)
        + "esac\n"
    )
    stand_in.chmod(0o755)
    ran = [
        subprocess.run(
            ["sh", script, runs, "own", "own sleep=1", "--max-time", "5"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for runs in ("3", "4")
    ]
    assert [done.returncode for done in ran] == [0, 1]
    assert ran[0].stdout.splitlines() == [
        "run 1 of 3: nothing",
        "run 2 of 3: worse",
        "run 3 of 3: too noisy",
        "3 runs of own and own sleep=1: 1 found B worse, 1 could say nothing",
    ]
    said = (tmp_path / "out/ab-runs/1.txt").read_text()
    assert said == "bench ab own own sleep=1 --out out/ab-runs/1.json --max-time 5\n"


CODES = ((1, "true", 0), (2, "true", 1), (3, "true", 3), (4, "false", 1))

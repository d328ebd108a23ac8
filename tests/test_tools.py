"""The scripts of tools/, run with a stand-in for sudo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.scenario.records import Record
from tests.rundocument import run_document

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
        "EBPF_TESTDATA",
        "EXHAUSTIVE",
        "KERNELS",
        "LOADER",
        "LOADER_TIMEOUT",
        "RELEASES",
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
    # Its second run is red; in its fourth one scenario has no verdict, in its fifth another one fails besides.
    (tmp_path / "no_verdict").write_text(
        '{"complete": true,\n"outcome": "passed",\n"outcome": "error",\n"message": "no verdict: no CPU"}'
    )
    (tmp_path / "failed").write_text((tmp_path / "no_verdict").read_text() + '\n{"outcome": "failed"}')
    stand_in.write_text(
        '#!/bin/sh\nmkdir -p "$5" && echo "ran $*"\n'
        'case "$5" in *4) cp no_verdict "$5/run.json" ;; *5) cp failed "$5/run.json" ;; esac\n'
        'case "$5" in *[245]) exit 1 ;; esac\n'
    )
    stand_in.chmod(0o755)
    suites = tmp_path / "scenarios"
    suites.mkdir()
    for name in ("one", "two", "three"):
        (suites / f"test_{name}.py").touch()
    done = subprocess.run(["sh", script, "5", "2", "-k", "x"], capture_output=True, text=True, timeout=60, check=False)
    *runs, last = done.stdout.splitlines()
    assert [line.rpartition(", ")[0] for line in runs] == [
        "run 1 of 5 (part 1, calm): green",
        "run 2 of 5 (part 1, busy): RED",
        "run 3 of 5 (part 2, calm): green",
        "run 4 of 5 (part 2, busy): no verdict",
        "run 5 of 5 (part 1, calm): RED",
    ]
    assert (done.returncode, last) == (1, "5 runs: 2 false alarms, 1 without a verdict")
    done = subprocess.run(["sh", script, "5", "4"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "soak: 4 parts: name 1 to 3, there are so many suites\n",
    )
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
    # And the lives of nodes do not take the options; restores have no verdict.
    stand_in.write_text(
        '#!/bin/sh\ncase "$*" in *--switch*) exit 1 ;; *--life*) exit 2 ;; *--restore*) exit 3 ;; esac\n'
    )
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    switches, lives, restores = (
        sum(word in line for line in done.stdout.splitlines()) for word in ("--switch", "--life", "--restore")
    )
    assert done.stdout.splitlines()[-1].startswith(
        f"{switches} sweeps with cases that were not survived, {restores} without a verdict, "
        f"{lives} that do not take these options, "
    )
    stand_in.write_text('#!/bin/sh\ncase "$*" in *--restore*) exit 3 ;; esac\n')
    assert subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 1


def test_ab_runs_counts_what_was_found_and_stops_at_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "tools" / "ab-runs"
    script.parent.mkdir()
    script.write_bytes((ROOT / "tools" / "ab-runs").read_bytes())
    stand_in = tmp_path / ".venv" / "bin" / "reloadlab"
    stand_in.parent.mkdir(parents=True)
    # The first finds nothing, the second both, the third cannot tell, the fourth fails.
    stand_in.write_text(
        '#!/bin/sh\necho "$*"\ncase "$6" in */2.json) echo "step  better"; echo "reload  worse" ;; esac\ncase "$6" in\n'
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
        "run 2 of 3: worse better",
        "run 3 of 3: nothing",
        "3 runs of own and own sleep=1: 1 found B worse, 1 better",
    ]
    said = (tmp_path / "out/ab-runs/1.txt").read_text()
    assert said == "bench ab own own sleep=1 --out out/ab-runs/1.json --max-time 5\n"


CODES = ((1, "true", 0), (2, "true", 1), (3, "true", 3), (4, "false", 1))


def _copied(directory: Path, name: str) -> Path:
    """Return a copy of a script below `directory`, which it takes for the project's."""
    tools = directory / "tools"
    tools.mkdir(exist_ok=True)
    for each in (name, "script.py"):
        (tools / each).write_bytes((ROOT / "tools" / each).read_bytes())
    return tools / name


def releases_of(directory: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a copy of tools/releases.py whose results, and whose reloadlab, lie in `directory`."""
    script = _copied(directory, "releases.py")
    argv = [sys.executable, script, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


RELEASES = '["1.16 tcx"]\nlibrary = "/c/bpf"\nloader = "sh x"\nattach = "tcx"\n["1.16-tcx"]\n'


def run_with(*outcomes: str) -> str:
    return run_document(Record(f"test_hitless.py::test_{n}", outcome) for n, outcome in enumerate(outcomes))


def test_releases_tells_every_outcome_of_the_run_that_it_has_made(tmp_path: Path) -> None:
    """The second run does not begin: what an earlier one has left is not its result."""
    (tmp_path / "releases.toml").write_text(RELEASES)
    stand_in = tmp_path / ".venv" / "bin" / "reloadlab"
    stand_in.parent.mkdir(parents=True)
    document = run_with("passed", "passed", "passed", "not run", "error")
    writes = f"echo '{document}' > \"$7/run.json\""
    stand_in.write_text(f'#!/bin/sh\necho "$*"\ncase "$*" in *"--library /c/bpf"*) {writes} ;; esac; exit 1\n')
    stand_in.chmod(0o755)
    out = tmp_path / "out" / "releases"
    for name in ("1.16 tcx", "1.16-tcx"):
        (out / name).mkdir(parents=True)
        (out / name / "run.json").write_text(run_with("failed"))
    done = releases_of(tmp_path, tmp_path / "releases.toml", "suite")
    assert done.stdout.splitlines() == [
        "| release | hitless |",
        "|---|---|",
        "| 1.16 tcx | 3 passed, 1 not run, 1 error |",
        "| 1.16-tcx | - |",
    ]
    assert done.returncode == 1
    assert f"--out {out}/1.16 tcx --library /c/bpf --loader sh x --attach tcx suite" in done.stderr
    again = releases_of(tmp_path, tmp_path / "releases.toml")
    assert (again.stdout, again.returncode) == (done.stdout, 1)


def test_releases_tells_a_run_that_was_refused(tmp_path: Path) -> None:
    """Its exit code is that of a call that is not understood."""
    (tmp_path / "releases.toml").write_text(RELEASES)
    stand_in = tmp_path / ".venv" / "bin" / "reloadlab"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(f'#!/bin/sh\nmkdir -p "$7"; echo \'{run_with("passed")}\' > "$7/run.json"; exit 2\n')
    stand_in.chmod(0o755)
    done = releases_of(tmp_path, tmp_path / "releases.toml", "suite")
    assert done.stdout.splitlines()[2:] == ["| 1.16 tcx |  |", "| 1.16-tcx |  |"]
    assert "1.16 tcx: ended with exit code 2\n" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "releases.toml: No such file or directory"), ("[", "releases.toml: not TOML"), (RELEASES, "not JSON")],
    ids=["no file", "no TOML", "a broken result"],
)
def test_releases_has_one_line_for_what_it_cannot_read(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "releases.toml").write_text(content)
    kept = tmp_path / "out" / "releases" / "1.16 tcx"
    kept.mkdir(parents=True)
    (kept / "run.json").write_text("{")
    done = releases_of(tmp_path, tmp_path / "releases.toml")
    assert (done.stdout, done.returncode) == ("", 1 if content == RELEASES else 2)
    assert done.stderr.startswith("releases.py: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def features_of(directory: Path, content: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of tools/features.py whose results lie in `directory`, with the reloadlab of this environment."""
    script = _copied(directory, "features.py")
    if not (directory / ".venv").exists():
        (directory / ".venv").symlink_to(ROOT / ".venv")
    (directory / "releases.toml").write_text(content)
    argv: list[str | Path] = [sys.executable, script, directory / "releases.toml", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.privileged
def test_features_are_tried_and_kept(tmp_path: Path) -> None:
    """What a release does not do has the reason in its place; what was not tried says so."""
    content = f'["ours"]\n["none"]\nlibrary = "{tmp_path}"\n'
    done = features_of(tmp_path, content, "native")
    rows = {line.split(" | ")[0].lstrip("| "): line.rstrip(" |").split(" | ")[2:] for line in done.stdout.splitlines()}
    nothing = f"fails: `up`: {tmp_path} holds no bpf_lxc.c: name a directory such as Cilium's bpf/"
    assert rows["what"] == ["ours", "none"]
    assert rows["a node without a tunnel"] == ["works", nothing]
    assert rows["the host's firewall"] == ["not tried"] * 2
    assert done.returncode == 0
    assert features_of(tmp_path, content).stdout == done.stdout


@pytest.mark.privileged
@pytest.mark.slow
def test_features_prove_and_inject_faults(tmp_path: Path) -> None:
    """Both commands build a node of their own."""
    done = features_of(tmp_path, '["ours"]\n', "prove", "faults")
    rows = {line.split(" | ")[0].lstrip("| "): line.rstrip(" |").split(" | ")[-1] for line in done.stdout.splitlines()}
    assert re.fullmatch(r"\d+ calls, \d+ packets, none lost|no verdict: .*", rows["packets at every system call"])
    assert re.fullmatch(r"12 of 12 survived, of \d+ there are.*", rows["a fault at a sample of the calls"])
    assert done.returncode == 0


def test_a_feature_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    done = features_of(tmp_path, '["ours"]\n', "natve")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("features.py: there is no natve; there are whole, native, ")
    assert features_of(tmp_path, "[").returncode == 2

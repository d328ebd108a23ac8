"""The recipe of docs/ci.md: its script is run as it stands there, on a repository with a branch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpf import LIBRARY
from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "ci.md").read_text()
SCRIPT, PLAIN = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
WORKFLOW, *_ = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
WASTE = "\twaste += 1;\n"
QUICK = ["--max-time", "1"]
"""One round or two: too few to say anything of times, and enough for what is exact."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of C sources in which a branch adds instructions to a program; the main branch has gone on."""
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    shutil.copytree(LIBRARY, tmp_path / "bpf", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (tmp_path / "perf.sh").write_text(SCRIPT)
    (tmp_path / ".gitignore").write_text("out\nhistory\n")
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path, "base")
    git(tmp_path, "switch", "-q", "-c", "change")
    source = tmp_path / "bpf" / "bpf_lxc.c"
    head, entry, rest = source.read_text().partition("cil_from_container(struct __ctx_buff *ctx)\n{\n")
    assert rest
    source.write_text(f"{head}{entry}\tvolatile __u32 waste = 0;\n{WASTE * 300}{rest}")
    commit(tmp_path, "change")
    git(tmp_path, "switch", "-q", "main")
    commit(tmp_path, "others went on")
    git(tmp_path, "switch", "-q", "change")
    return tmp_path


def git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=directory, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def commit(directory: Path, message: str) -> None:
    git(directory, "add", ".")
    git(directory, "commit", "-q", "--allow-empty", "-m", message)


def calls(text: str) -> list[str]:
    """Return the lines that call the script."""
    return [line.strip() for line in text.splitlines() if "sh perf.sh" in line]


def command(line: str) -> list[str]:
    """Return the words of a line that calls the script, without sudo."""
    words = shlex.split(line)
    assert words[0] == "sudo"
    assert words[1].startswith("--preserve-env=PATH")
    return words[2:]


def run(argv: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    environment |= {"PATH": path} | variables
    return subprocess.run(
        argv,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.privileged
def test_a_change_that_is_worse_fails_the_job_and_everything_is_kept(repository: Path) -> None:
    (line,) = calls(WORKFLOW)
    summary = repository / "out" / "step-summary.md"
    summary.parent.mkdir()
    argv = [word.replace("$BASE", "main") for word in command(line)]
    done = run([*argv, *QUICK], repository, GITHUB_STEP_SUMMARY=str(summary), PERF_HISTORY="history")
    assert done.returncode == 1, done.stderr
    out = repository / "out" / "perf"
    assert {path.name for path in out.iterdir()} == {"ab.json", "ab.txt", "bencher.json", "history.txt", "history.svg"}
    worse = [row for row in summary.read_text().partition("<details>")[0].splitlines() if row.endswith("| worse |")]
    assert worse
    assert any(row.startswith(r"| verified instructions: cil\_from\_container |") for row in worse)
    (kept,) = (repository / "history").iterdir()
    base, head = git(repository, "merge-base", "main", "HEAD"), git(repository, "rev-parse", "HEAD")
    assert json.loads((out / "ab.json").read_text())["subjects"]["A"]["commit"] == base
    assert json.loads(kept.read_text())["subjects"][""]["commit"] == head
    assert head[:12] in kept.name


@pytest.mark.privileged
def test_a_change_that_cannot_be_measured_is_not_called_worse(repository: Path) -> None:
    words = {"origin/main": "main", "bpf": "."}
    argv = [words.get(word, word) for word in command(PLAIN.strip())]
    done = run(argv, repository, PERF_HISTORY="history")
    assert done.returncode == 3, done.stderr
    assert "holds no bpf_lxc.c" in done.stderr
    assert not (repository / "history").exists()


def test_a_reloadlab_that_does_not_begin_is_not_called_slower(tmp_path: Path) -> None:
    (tmp_path / "perf.sh").write_text(SCRIPT)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "reloadlab"
    program.write_text(f"#!{sys.executable}\nimport a_module_that_is_not_there\n")
    program.chmod(0o755)
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path, "base")
    done = run(["sh", "perf.sh", "main", "."], tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "out").exists()


def test_the_plain_call_is_that_of_the_workflow() -> None:
    (line,) = calls(WORKFLOW)
    assert [word.replace("$BASE", "origin/main") for word in command(line)] == command(PLAIN.strip())

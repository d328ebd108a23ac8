"""The pipelines of docs/ci.md that test other kernels and machines: what GitHub and GitLab would say to their form."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "ci.md").read_text(), re.MULTILINE | re.DOTALL)
GITHUB, GITLAB = "vendor.github-workflows", "vendor.gitlab-ci"


def schema_of(block: str) -> str:
    return GITHUB if "\njobs:" in block else GITLAB


def check(block: str, directory: Path, schema: str) -> subprocess.CompletedProcess[str]:
    """Check a file against a schema that the checker has in it; nothing is fetched."""
    (directory / "pipeline.yml").write_text(block)
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, "--data-transform"]
    argv += ["gitlab-ci" if schema == GITLAB else "github-workflows"] if schema == GITLAB else []
    if schema == GITHUB:
        argv.remove("--data-transform")
    return subprocess.run(
        [*argv, str(directory / "pipeline.yml")], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.partition("\n")[0])
def test_pipelines_have_the_form_that_their_service_wants(block: str, tmp_path: Path) -> None:
    done = check(block, tmp_path, schema_of(block))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("right", "wrong"), [("runs-on:", "run-on:"), ("when: always", "when: sometimes")])
def test_a_wrong_word_is_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    block = next(block for block in BLOCKS if right in block)
    assert check(block.replace(right, wrong), tmp_path, schema_of(block)).returncode != 0


def commands(block: str) -> list[list[str]]:
    """Return the words of the calls of our command, with something in place of what the service fills in."""
    text = re.sub(
        r"\$\{\{.*?\}\}", "6.1", re.sub(r">-\n((?: {10}.*\n)+)", lambda found: " ".join(found[1].split()), block)
    )
    lines = [line.partition("bin/reloadlab ")[2] for line in text.splitlines() if "bin/reloadlab " in line]
    return [shlex.split(line) for line in lines]


def test_their_commands_are_understood() -> None:
    found = [words for block in BLOCKS for words in commands(block)]
    assert [words[0] for words in found] == ["vm", "run", "run"]
    for words in found:
        args, unknown = build_parser(words[0]).parse_known_args(words)
        assert unknown == []
        assert args.run is not None

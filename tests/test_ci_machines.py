"""The pipelines of docs/ci.md that test other kernels and machines: what GitHub and GitLab would say to their form."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "ci.md").read_text(), re.MULTILINE | re.DOTALL)
SCHEMAS = {
    "github": ["vendor.github-workflows"],
    "gitlab": ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
}
WRONG = {"github": ("runs-on:", "run-on:"), "gitlab": ("when: always", "when: sometimes")}


def service_of(block: str) -> str:
    return "github" if "\njobs:" in block else "gitlab"


def refused(files: list[Path], service: str) -> dict[str, list[str]]:
    """Return what the schema that the checker has in it says against files, by their names; nothing is fetched."""
    argv = [sys.executable, "-m", "check_jsonschema", "-o", "json", "--builtin-schema", *SCHEMAS[service]]
    done = subprocess.run([*argv, *map(str, files)], capture_output=True, text=True, timeout=120, check=False)
    said = json.loads(done.stdout)
    assert set(said) >= {"status", "errors"}, (said, done.stderr)
    found: dict[str, list[str]] = {}
    for error in (*said["errors"], *said.get("parse_errors", ())):
        found.setdefault(Path(error["filename"]).name, []).append(error["message"])
    return found


@pytest.mark.parametrize("service", SCHEMAS)
def test_pipelines_have_the_form_that_their_service_wants(service: str, tmp_path: Path) -> None:
    """One of them with a wrong word goes along, and is the only one that is refused."""
    blocks = [block for block in BLOCKS if service_of(block) == service]
    right, wrong = WRONG[service]
    assert right in blocks[0]
    for number, block in enumerate([*blocks, blocks[0].replace(right, wrong)]):
        (tmp_path / f"{number}.yml").write_text(block)
    found = refused(sorted(tmp_path.glob("*.yml")), service)
    assert list(found) == [f"{len(blocks)}.yml"], found


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

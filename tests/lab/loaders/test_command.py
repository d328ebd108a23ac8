"""Which loader is meant by a name or a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.loaders.command import TIMEOUT, BadLoader, LoaderCommand, answer_seconds, find_loader

PROJECT = """
[tool.reloadlab.loaders]
mine = ["bin/loader", "--quiet"]
shell = ["sh", "-c", "cat"]
"""


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "suites").mkdir()
    program(tmp_path / "bin" / "loader")
    return tmp_path


def test_a_name_is_one_of_the_project(project: Path) -> None:
    wanted = LoaderCommand("mine", (str(project / "bin/loader"), "--quiet"))
    assert find_loader("mine", project) == wanted
    assert find_loader("mine", project / "suites") == wanted
    assert find_loader("shell", project) == LoaderCommand("shell", ("sh", "-c", "cat"))


def test_a_tilde_is_the_home_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    mine = program(tmp_path / "home" / "mine")
    assert find_loader("~/mine x", tmp_path) == LoaderCommand("mine", (str(mine), "x"))


def test_anything_else_is_a_command(tmp_path: Path) -> None:
    assert find_loader("builtin", tmp_path) is None
    assert find_loader("sh -c 'cat -'", tmp_path) == LoaderCommand("sh", ("sh", "-c", "cat -"))
    program(tmp_path / "mine.sh")
    assert find_loader("./mine.sh x", tmp_path) == LoaderCommand("mine.sh", (str(tmp_path / "mine.sh"), "x"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "give a command"),
        ("'sh", "closing quotation"),
        ("./typo x", "no loader ./typo: /.*/typo is no program that can be run"),
        ("./pyproject.toml", "no program that can be run"),
        ("./suites", "no program that can be run"),
        ("no-such-loader", "no loader no-such-loader: .* names are builtin, tc, mine, shell"),
    ],
)
def test_what_is_no_loader_is_refused(project: Path, text: str, reason: str) -> None:
    with pytest.raises(BadLoader, match=reason):
        find_loader(text, project)


@pytest.mark.parametrize(
    "document",
    [
        "[tool.reloadlab.loaders]\nmine = 'sh'",
        "[tool.reloadlab.loaders]\nmine = []",
        "[tool.reloadlab.loaders]\nmine = ['sh', 1]",
        "[tool.reloadlab]\nloaders = 1",
        "[tool]\nreloadlab = 'x'",
        "tool = 1",
        "[tool",
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, document: str) -> None:
    (tmp_path / "pyproject.toml").write_text(document)
    with pytest.raises(BadLoader, match=r"pyproject\.toml: "):
        find_loader("mine", tmp_path)


def test_the_environment_sets_the_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELOADLAB_LOADER_TIMEOUT", raising=False)
    monkeypatch.setenv("RELOADLAB_SLOWNESS", "1")
    assert answer_seconds() == TIMEOUT
    # On a slow machine it has longer, unless somebody has said how long.
    monkeypatch.setenv("RELOADLAB_SLOWNESS", "7")
    assert answer_seconds() == 7 * TIMEOUT
    monkeypatch.setenv("RELOADLAB_LOADER_TIMEOUT", "2.5")
    assert answer_seconds() == 2.5
    for text in ("0", "-1", "soon", "inf", "nan"):
        monkeypatch.setenv("RELOADLAB_LOADER_TIMEOUT", text)
        with pytest.raises(BadLoader, match="not a number of seconds"):
            answer_seconds()

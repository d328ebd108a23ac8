"""The files that go along to a machine."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from lab.machines import tree as trees
from lab.machines.tree import BadTree, environment_key, our_tree, project_of, tree_of
from tests.lab.labs import ROOT


def test_every_file_that_the_scenarios_need_goes_along() -> None:
    found = set(our_tree().files)
    for package in ("bpf", "datapath", "lab", "reloadlab", "scenarios", "tools"):
        kept = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.relative_to(ROOT).as_posix() for path in kept} - found == set()
    assert {"requirements.lock", "pyproject.toml", "setup.py"} <= found
    assert not [name for name in found if name.startswith((".venv", ".git/", "out/")) or "__pycache__" in name]


def test_the_key_is_of_names_content_and_mode(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    keys = [tree_of(tmp_path).key, tree_of(tmp_path).key]
    assert keys[0] == keys[1]
    (tmp_path / "a").chmod(0o755)
    keys.append(tree_of(tmp_path).key)
    (tmp_path / "a").write_text("2")
    keys.append(tree_of(tmp_path).key)
    (tmp_path / "a").rename(tmp_path / "b")
    keys.append(tree_of(tmp_path).key)
    assert len(set(keys)) == 4


def test_links_hidden_files_and_what_tools_make_stay_here(tmp_path: Path) -> None:
    for name in ("a.py", ".secret", "out/run.json", "below/build/b.py", "build/c", "venv/pyvenv.cfg", "venv/lib/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("/etc/shadow")
    tree = tree_of(tmp_path)
    assert tree.files == ("a.py", "below/build/b.py")
    with tarfile.open(fileobj=io.BytesIO(tree.packed())) as archive:
        members = archive.getmembers()
        assert [(each.name, each.uid, each.mtime, each.isfile()) for each in members] == [
            ("a.py", 0, 0, True),
            ("below/build/b.py", 0, 0, True),
        ]


def test_too_much_is_refused_before_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "LARGEST", 1 << 20)
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(BadTree, match="has more than 1 MiB of files, too much to copy"):
        tree_of(tmp_path)


def test_what_changes_while_it_is_copied_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    tree = tree_of(tmp_path)
    assert tree.packed()
    (tmp_path / "a").write_text("2")
    with pytest.raises(BadTree, match="changed while they were copied: run it again"):
        tree.packed()


def test_a_directory_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tree_of(tmp_path / "missing")


def test_the_home_of_the_user_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "test_a.py").touch()
    with pytest.raises(BadTree, match="is your home: all of it would be copied"):
        tree_of(project_of(tmp_path / "test_a.py"))


def test_a_suite_goes_along_with_its_project(tmp_path: Path) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    suite = tmp_path / "mine" / "deep" / "test_a.py"
    suite.touch()
    assert project_of(suite) == tmp_path / "mine" / "deep"
    (tmp_path / "mine" / "pytest.ini").touch()
    assert project_of(suite) == project_of(tmp_path / "mine") == tmp_path / "mine"


def test_the_environment_depends_on_what_set_up_reads(tmp_path: Path) -> None:
    argv = ["cp", "--parents", "requirements.lock", "pyproject.toml", "setup.py", "tools/setup", "tools/as-root"]
    subprocess.run([*argv, tmp_path], cwd=ROOT, timeout=60, check=True)
    assert environment_key(tmp_path) == environment_key(ROOT)
    with (tmp_path / "requirements.lock").open("a") as file:
        file.write("\n")
    assert environment_key(tmp_path) != environment_key(ROOT)

"""sources.py: whatever changes what the compiler would read is another digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from datapath.build import sources
from datapath.build.sources import SourceTree


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return a library of two directories that differ, and a link to the first."""
    library = tmp_path / "library"
    for name in ("a", "b"):
        (library / name).mkdir(parents=True)
        (library / name / "x.h").write_text(f"#define NAME {name}\n")
    (library / "cur").symlink_to("a")
    return library


def retarget(link: Path, target: Path | str) -> None:
    """Do what ln -sfn does."""
    link.with_name("new").symlink_to(target)
    link.with_name("new").rename(link)


def test_link_to_another_directory_of_the_library(library: Path) -> None:
    tree = SourceTree(library)
    before = tree.read()
    retarget(library / "cur", "b")
    after = tree.read()
    assert after.digest != before.digest
    assert SourceTree(library).read().digest == after.digest
    retarget(library / "cur", "a")
    assert tree.read().digest == before.digest


def test_link_that_sorts_before_what_it_leads_to(library: Path) -> None:
    (library / "0").symlink_to("a")
    before = SourceTree(library).read()
    retarget(library / "0", "b")
    assert SourceTree(library).read().digest != before.digest


def test_link_that_changes_outside_of_the_library(library: Path, tmp_path: Path) -> None:
    """No directory of the library changes: the link leads to it by one that lies elsewhere."""
    outside = tmp_path / "outside"
    outside.symlink_to(library / "a")
    retarget(library / "cur", outside)
    tree = SourceTree(library)
    before = tree.read()
    retarget(outside, library / "b")
    assert tree.read().digest != before.digest


def test_digest_does_not_depend_on_where_the_library_lies(library: Path, tmp_path: Path) -> None:
    before = SourceTree(library).read()
    library.rename(tmp_path / "elsewhere")
    assert SourceTree(tmp_path / "elsewhere").read().digest == before.digest


def test_file_that_appears_while_its_directory_is_read(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the digest, or the next look at the stamps says that the directory has changed."""
    stamp, extra = sources._stamp, library / "a/extra.h"

    def late(path: str) -> tuple[int, int, int, int]:
        if path == str(library / "a") and not extra.exists():
            extra.write_text("#define EXTRA\n")
        return stamp(path)

    tree = SourceTree(library)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_stamp", late)
        tree.read()
    assert tree.read().digest == SourceTree(library).read().digest


def test_only_sources_and_directories_that_change_make_it_read_again(library: Path) -> None:
    tree = SourceTree(library)
    before = tree.read()
    assert before.is_current()
    assert tree.read() is before
    (library / "a/x.h").write_text("#define NAME c\n")
    assert not before.is_current()
    assert tree.read() is not before


def test_library_that_is_not_there(tmp_path: Path) -> None:
    tree = SourceTree(tmp_path / "nowhere")
    missing = tree.read()
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere/x.h").write_text("")
    assert tree.read().digest != missing.digest

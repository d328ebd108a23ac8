from __future__ import annotations

from pathlib import Path

import pytest

from lab.box.plan import CannotBuild
from lab.box.root import cached, source_date


def test_what_is_kept_is_made_once_and_anew_for_other_parts(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text(str(len(made)))

    first = cached(tmp_path, "root-x", ["a"], make)
    assert cached(tmp_path, "root-x", ["a"], make) == first
    assert (len(made), first.read_text()) == (1, "1")
    other = cached(tmp_path, "root-y", ["a"], make)
    second = cached(tmp_path, "root-x", ["b"], make)
    assert sorted(tmp_path.iterdir()) == sorted([other, second])


def test_what_is_not_made_leaves_nothing(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "wheels-x", ["a"], make)
    assert list(tmp_path.iterdir()) == []


def test_the_date_of_files_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert source_date(7) == 7
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "8")
    assert source_date(7) == 8
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(CannotBuild, match="SOURCE_DATE_EPOCH=yesterday is no number of seconds"):
        source_date(7)

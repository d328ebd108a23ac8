from __future__ import annotations

from pathlib import Path

import pytest

from lab.box.vagrant import CannotEnd, Machine, destroy, machines


def test_machines_are_those_that_vagrant_has_made(tmp_path: Path) -> None:
    assert machines(tmp_path) == []
    for name, kept in (("debian12", "id"), ("linux-6.12", "index_uuid")):
        directory = tmp_path / ".vagrant" / "machines" / name / "libvirt"
        directory.mkdir(parents=True)
        (directory / kept).write_text("e0a4\n")
    assert machines(tmp_path) == [Machine("debian12", "libvirt", "e0a4")]


def test_without_vagrant_its_machines_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotEnd, match=r"^debian12 cannot be ended without vagrant: apt-get install vagrant "):
        destroy(tmp_path, ["debian12"])


@pytest.mark.privileged
def test_what_vagrant_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".vagrant" / "machines").mkdir(parents=True)
    vagrant = tmp_path / "vagrant"
    vagrant.write_text('#!/bin/sh\necho "$PWD $*" >said\necho "no libvirt\n here" >&2\nexit 1\n')
    vagrant.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    with pytest.raises(CannotEnd, match=r"^vagrant could not end a, b: no libvirt here$"):
        destroy(tmp_path, ["a", "b"])
    assert (tmp_path / "said").read_text() == f"{tmp_path} destroy --force a b\n"

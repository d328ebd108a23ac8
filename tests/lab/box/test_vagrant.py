from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.box.vagrant import CannotEnd, Machine, destroy, domains, machines


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


@pytest.mark.privileged
def test_machines_of_a_user_without_a_name_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, of a checkout that was mounted there."""
    (tmp_path / ".vagrant" / "machines").mkdir(parents=True)
    os.chown(tmp_path / ".vagrant" / "machines", 4711, 4711)
    (tmp_path / "vagrant").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    with pytest.raises(CannotEnd, match=r"^a, b cannot be ended: they are user 4711's, whom this system does not know"):
        destroy(tmp_path, ["a", "b"])


def test_a_domain_may_have_a_space_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "virsh").write_text("#!/bin/sh\nprintf 'one\\nmy machine\\n\\n'\n")
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert domains() == ["one", "my machine"]

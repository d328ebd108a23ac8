from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.box import build
from lab.box.build import boxes_directory, make_directory, make_private, planned
from lab.box.plan import RELEASES, CannotBuild
from lab.vm import machine
from lab.vm.kernels import Kernel


def test_a_box_for_emulation_has_its_kernel_do_without_what_qemu_emulates_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.12 would die of it. It is another box than that for a machine with KVM, and takes the place of it."""
    for name in ("lock", "vmlinuz", "modules.dep", "kvm"):
        (tmp_path / name).touch()
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu vmx\n")
    kernel = Kernel("6.12", "6.12.1", tmp_path / "vmlinuz", tmp_path)
    monkeypatch.setattr(machine, "KVM", tmp_path / "kvm")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")

    def plan() -> tuple[str, str]:
        made = planned(RELEASES["bookworm"], kernel, [], tmp_path / "lock", 0)
        return made.options, made.digest

    with_kvm, digest = plan()
    monkeypatch.setattr(machine, "KVM", tmp_path / "none")
    emulated, other = plan()
    assert with_kvm == ""
    assert "clearcpuid=141" in emulated.split()
    assert digest != other


def test_a_box_is_built_anew_for_a_module_of_other_content(tmp_path: Path) -> None:
    """As of a developer who changes a module alone: the image, and the index of modules, stay as they are."""
    modules = tmp_path / "modules"
    (modules / "kernel").mkdir(parents=True)
    for name in ("lock", "vmlinuz", "modules/modules.dep", "modules/kernel/m.ko"):
        (tmp_path / name).touch()
    (modules / "build").symlink_to("/usr/src/linux-6.12")
    kernel = Kernel("6.12.1", "6.12.1", tmp_path / "vmlinuz", modules)

    def digest() -> str:
        return planned(RELEASES["bookworm"], kernel, [], tmp_path / "lock", 0).digest

    before = digest()
    assert digest() == before
    (modules / "kernel" / "m.ko").write_text("changed")
    changed = digest()
    (modules / "kernel" / "m.ko").rename(modules / "kernel" / "n.ko")
    assert len({before, changed, digest()}) == 3


@pytest.fixture
def narrow() -> Iterator[None]:
    """What is made is for root alone, as on a hardened machine."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.usefixtures("narrow")
def test_whoever_calls_vagrant_can_read_the_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vagrant would say that there is no box. What is above was made by commands that keep something for root alone."""
    (tmp_path / "reloadlab").mkdir()
    (tmp_path / "reloadlab" / "kernels").mkdir()
    monkeypatch.setattr(build, "DEFAULT_DIRECTORY", tmp_path / "reloadlab" / "boxes")
    for given, made in (("", "reloadlab/boxes"), (str(tmp_path / "own" / "boxes"), "own/boxes")):
        monkeypatch.setenv("RELOADLAB_BOXES", given)
        make_directory(boxes_directory())
        for place in (tmp_path / made, (tmp_path / made).parent):
            assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "reloadlab" / "kernels").stat().st_mode) == 0o700


@pytest.mark.usefixtures("narrow")
def test_a_directory_of_somebodys_own_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "boxes").mkdir()
    make_directory(tmp_path / "boxes")
    assert stat.S_IMODE((tmp_path / "boxes").stat().st_mode) == 0o700


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """Root unpacks and runs what it has kept there."""
    tmp_path.chmod(0o777)
    with pytest.raises(CannotBuild, match=r"mode 0777, so that others may write: name another directory in RELOADLAB_"):
        make_directory(tmp_path)


@pytest.mark.privileged
def test_a_directory_of_somebody_else_is_refused_but_not_that_of_who_called_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tmp_path, 4711, 4711)
    with pytest.raises(CannotBuild, match=r"belongs to user 4711: name another directory in RELOADLAB_BOXES"):
        make_directory(tmp_path)
    monkeypatch.setenv("SUDO_UID", "4711")
    monkeypatch.setenv("SUDO_GID", "4711")
    make_directory(tmp_path)


@pytest.mark.parametrize("name", [".kept", ".work"])
def test_a_link_in_the_place_of_what_is_kept_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotBuild, match=rf"^{tmp_path / name} is no directory: remove it$"):
        make_private(tmp_path / name)

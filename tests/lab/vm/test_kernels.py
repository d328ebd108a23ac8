from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.vm.kernels import KERNELS_VARIABLE, NoKernel, UnsafeKernels, fetched, find, matching, release_of
from tests.lab.vm.samples import kernel_image

RELEASE = "6.12.95+deb12-amd64"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of fetched kernels, with three of them."""
    monkeypatch.setenv(KERNELS_VARIABLE, str(tmp_path))
    for release in ("6.12.95+deb12-amd64", "6.12.118+deb13-amd64", "5.10.0-46-amd64"):
        (tmp_path / release / "lib" / "modules" / release).mkdir(parents=True)
    (tmp_path / ".apt").mkdir()
    return tmp_path


def test_a_version_means_its_newest_release(directory: Path) -> None:
    assert [kernel.release for kernel in fetched()] == [
        "5.10.0-46-amd64",
        "6.12.95+deb12-amd64",
        "6.12.118+deb13-amd64",
    ]
    kernel = find("6.12")
    assert (kernel.label, kernel.release) == ("6.12", "6.12.118+deb13-amd64")
    assert kernel.modules.is_dir()
    assert find("newest").release == "6.12.118+deb13-amd64"
    assert find("6.12.95").release == "6.12.95+deb12-amd64"


def test_a_version_is_no_beginning_of_a_number() -> None:
    assert matching("6.1", ["6.12.95-amd64", "6.1.0-57-amd64", "16.1.0-amd64"]) == ["6.1.0-57-amd64"]


def test_a_kernel_that_was_not_fetched_is_one_line_with_the_command(directory: Path) -> None:
    with pytest.raises(NoKernel, match=r"no kernel 6\.1 has been fetched; there are 5\.10.*: reloadlab vm fetch 6\.1$"):
        find("6.1")
    with pytest.raises(NoKernel, match=r"give a version such as 6\.12, or a path with a slash"):
        find("latest")


def test_a_directory_that_others_may_write_to_is_refused(directory: Path) -> None:
    """A kernel reads every file of this machine."""
    directory.chmod(0o777)
    with pytest.raises(UnsafeKernels, match=r"has mode 0777, so that others may write: name another .*_KERNELS$"):
        fetched()


@pytest.mark.privileged
def test_a_directory_of_somebody_else_is_refused(directory: Path) -> None:
    os.chown(directory, 65534, 65534)
    with pytest.raises(UnsafeKernels, match=r"belongs to user 65534: name another directory in RELOADLAB_KERNELS$"):
        find("6.12")


def test_nothing_fetched_is_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, str(tmp_path / "missing"))
    assert fetched() == []
    with pytest.raises(NoKernel, match=r"no kernel 6\.12 has been fetched: reloadlab vm fetch 6\.12$"):
        find("6.12")


@pytest.mark.parametrize("beside", [".", ".."])
def test_an_own_build_is_its_image_with_the_modules_beside_or_above(tmp_path: Path, beside: str) -> None:
    path = tmp_path / "boot" / "bzImage"
    path.parent.mkdir()
    path.write_bytes(kernel_image(RELEASE))
    modules = (path.parent / beside).resolve() / "lib" / "modules" / RELEASE
    modules.mkdir(parents=True)
    kernel = find(str(path))
    assert (kernel.label, kernel.release, kernel.image, kernel.modules) == (RELEASE, RELEASE, path, modules)


def test_an_image_without_modules_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(kernel_image(RELEASE))
    with pytest.raises(NoKernel, match=rf"has no modules: .*make modules_install INSTALL_MOD_PATH={tmp_path}$"):
        find(str(tmp_path / "vmlinuz"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF" + bytes(4096),
        kernel_image("")[:0x300] + bytes(64),
        kernel_image(".."),
        kernel_image("6.1/../.."),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vmlinux").write_bytes(content)
    with pytest.raises(NoKernel, match=r"is no image of an x86 kernel|does not say which release"):
        release_of(tmp_path / "vmlinux")


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoKernel, match="no such file: name the image"):
        find(str(tmp_path / "vmlinuz"))

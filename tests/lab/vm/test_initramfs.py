from __future__ import annotations

import lzma
import shutil
import sys
from pathlib import Path

import pytest

from lab.vm.initramfs import UnfitBusybox, archive, busybox, needed_modules
from lab.vm.kernels import Kernel, NoKernel

HEAD = 110  # bytes before a name


def entries(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read an archive as the kernel does (init/initramfs.c): each part is padded to four bytes."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name = data[at + HEAD : at + HEAD + length - 1].decode()
        assert data[at + HEAD + length - 1] == 0
        at = (at + HEAD + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[at : at + size])
        at = (at + size + 3) // 4 * 4


def test_an_archive_holds_each_file_after_its_directory() -> None:
    files = {"bin/busybox": (0o100755, b"12345"), "init": (0o100755, b""), "a/b/c": (0o100644, b"x" * 4097)}
    found = entries(archive(files))
    assert {name: entry for name, entry in found.items() if name in files} == files
    order = list(found)
    assert all(order.index(directory) < order.index(name) for directory, name in (("a", "a/b"), ("a/b", "a/b/c")))
    assert found["bin"][0] == 0o040755


def test_a_kernel_whose_modules_have_no_index_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    modules = tmp_path / "lib" / "modules" / "6.1.0"
    modules.mkdir(parents=True)
    with pytest.raises(NoKernel, match=rf"has no modules.dep: depmod --basedir {tmp_path} 6.1.0$"):
        needed_modules(Kernel("6.1", "6.1.0", tmp_path / "vmlinuz", modules))


@pytest.mark.skipif(shutil.which("modprobe") is None, reason="needs modprobe (package kmod)")
def test_a_kernel_that_lacks_a_driver_is_one_line_with_its_option(tmp_path: Path) -> None:
    modules = tmp_path / "lib" / "modules" / "6.1.0"
    modules.mkdir(parents=True)
    (modules / "modules.dep").touch()
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    with pytest.raises(NoKernel, match=r"kernel 6.1.0 has no \w+: it must have CONFIG_\w+ \(=m or =y\)"):
        needed_modules(Kernel("6.1", "6.1.0", tmp_path / "vmlinuz", modules))


def test_a_busybox_that_needs_libraries_is_one_line_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "busybox").symlink_to(Path(sys.executable).resolve())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnfitBusybox, match="needs shared libraries: apt-get install busybox-static"):
        busybox()


def test_compressed_modules_are_unpacked(tmp_path: Path) -> None:
    from lab.vm.initramfs import _plain

    (tmp_path / "m.ko.xz").write_bytes(lzma.compress(b"module"))
    (tmp_path / "m.ko").write_bytes(b"plain")
    assert (_plain(tmp_path / "m.ko.xz"), _plain(tmp_path / "m.ko")) == (b"module", b"plain")

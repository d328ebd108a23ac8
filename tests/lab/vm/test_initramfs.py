from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datapath.build.compile import find_clang
from lab.vm.initramfs import NEEDED, UnfitBusybox, archive, busybox, needed_modules
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


@pytest.mark.skipif(shutil.which("depmod") is None, reason="needs depmod (package kmod)")
def test_modules_are_found_in_a_directory_with_a_space(tmp_path: Path) -> None:
    base = tmp_path / "my kernels"
    modules = base / "lib" / "modules" / "6.1.0"
    modules.mkdir(parents=True)
    for name in ("modules.order", "modules.builtin"):
        (modules / name).touch()
    # depmod reads it: any object will do.
    subprocess.run([find_clang(), "-c", "-x", "c", "-o", modules / "9p.ko", "/dev/null"], timeout=60, check=True)
    subprocess.run(["depmod", "--basedir", base, "6.1.0"], capture_output=True, timeout=60, check=True)
    kernel = Kernel("6.1", "6.1.0", base / "vmlinuz", modules)
    assert needed_modules(kernel, {"9p": "CONFIG_9P_FS"}) == [modules / "9p.ko"]


@pytest.mark.skipif(shutil.which("depmod") is None, reason="needs depmod (package kmod)")
def test_a_kernel_with_everything_built_in_needs_no_module(tmp_path: Path) -> None:
    """As `make modules_install` leaves it without CONFIG_MODULES, and depmod after it."""
    modules = tmp_path / "lib" / "modules" / "6.1.0"
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in NEEDED))
    subprocess.run(["depmod", "--basedir", tmp_path, "6.1.0"], capture_output=True, timeout=60, check=True)
    assert needed_modules(Kernel("6.1", "6.1.0", tmp_path / "vmlinuz", modules)) == []


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


@pytest.mark.parametrize("name", ["m.ko.xz", "m.ko.gz", "m.ko.zst", "empty.ko.xz", "short.ko.gz"])
def test_a_module_that_is_not_whole_is_one_line(tmp_path: Path, name: str) -> None:
    from lab.vm.initramfs import _plain

    if name.endswith(".zst") and shutil.which("zstd") is None:
        pytest.skip("needs zstd")
    content = {"empty.ko.xz": b"", "short.ko.gz": gzip.compress(b"module" * 99)[:20]}.get(name, b"not compressed")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NoKernel, match=rf"^{tmp_path / name} cannot be unpacked: \S[^\n]+$"):
        _plain(tmp_path / name)

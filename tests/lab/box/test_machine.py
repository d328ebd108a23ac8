from __future__ import annotations

from pathlib import Path

from lab.box.machine import add_kernel
from lab.vm.kernels import Kernel

RELEASE = "6.1.0-57-amd64"


def test_modules_come_beside_the_headers_of_the_same_release(tmp_path: Path) -> None:
    source, root = tmp_path / "kernel" / "lib" / "modules" / RELEASE, tmp_path / "root"
    (source / "kernel").mkdir(parents=True)
    (source / "modules.dep").write_text("x")
    (source / "source").symlink_to("/home/somebody/linux")
    there = root / "usr" / "lib" / "modules" / RELEASE
    there.mkdir(parents=True)
    (root / "usr" / "src" / "headers").mkdir(parents=True)
    (there / "build").symlink_to("/usr/src/headers")
    add_kernel(root, Kernel("6.1", RELEASE, tmp_path / "vmlinuz", source))
    assert sorted(path.name for path in there.iterdir()) == ["build", "kernel", "modules.dep"]

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from lab.box import image
from lab.box.image import NEEDED, description, write_box
from lab.box.plan import RELEASES, TOOLS, BoxPlan, missing_tools
from lab.vm.kernels import Kernel
from tests.lab.vm.samples import kernel_image

MISSING = sorted({TOOLS[name] for name in missing_tools()} - {"mmdebstrap"})
RELEASE = "6.12.1"
BOOT_AT = 1 << 20


def run(*argv: str | Path) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture
def plan(tmp_path: Path) -> BoxPlan:
    """A plan with a kernel that has all it needs built in."""
    modules = tmp_path / "lib" / "modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "modules.order").touch()
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in NEEDED))
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(kernel_image(RELEASE))
    kernel = Kernel("6.12", RELEASE, vmlinuz, modules)
    return BoxPlan(RELEASES["bookworm"], kernel, "12345678" * 8, 1_700_000_000, "nokaslr")


@pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {' '.join(MISSING)}")
def test_the_disk_of_a_box_has_both_file_systems(
    plan: BoxPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "DISK", 80 << 20)
    run("depmod", "--basedir", tmp_path, RELEASE)
    root, work, box = tmp_path / "root", tmp_path / "work", tmp_path / "linux-6.12.box"
    work.mkdir()
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hostname").write_text("reloadlab\n")
    write_box(plan, root, box, work)
    with tarfile.open(box) as archive:
        assert {member.name: (member.uid, member.mtime) for member in archive} == {
            "metadata.json": (0, plan.time),
            "box.img": (0, plan.time),
        }
    (tmp_path / "box").mkdir()
    run("tar", "--extract", f"--file={box}", f"--directory={tmp_path / 'box'}")
    assert json.loads((tmp_path / "box" / "metadata.json").read_text())["provider"] == "libvirt"
    disk = tmp_path / "disk.raw"
    run("qemu-img", "convert", "-O", "raw", tmp_path / "box" / "box.img", disk)
    boot, start = (int(line.split("start=")[1].split(",")[0]) for line in run("sfdisk", "-d", disk).splitlines()[-2:])
    assert boot * 512 == BOOT_AT
    assert run("debugfs", "-R", "cat /etc/hostname", f"{disk}?offset={start * 512}") == "reloadlab\n"
    for name, content in (("vmlinuz", plan.kernel.image.read_bytes()), ("initrd.img", None)):
        run("mcopy", "-i", f"{disk}@@{BOOT_AT}", f"::/{name}", tmp_path / name)
        assert content is None or (tmp_path / name).read_bytes() == content
    assert (tmp_path / "initrd.img").read_bytes()[:6] == b"070701"
    told = run("mtype", "-i", f"{disk}@@{BOOT_AT}", "::/syslinux.cfg").splitlines()
    (append,) = (line.split() for line in told if "APPEND" in line)
    assert {"root=/dev/vda2", "nokaslr"} <= set(append)
    again = tmp_path / "again"
    again.mkdir()
    write_box(plan, root, tmp_path / "again.box", again)
    assert (again / "boot.fat").read_bytes() == (work / "boot.fat").read_bytes()
    assert run("mdir", "-i", f"{disk}@@{BOOT_AT}", "::").count("2023-11-14") >= 3
    with disk.open("rb") as file:
        assert file.read(440).rstrip(b"\0")
        file.seek(510)
        assert file.read(2) == b"\x55\xaa"


def test_what_vagrant_reads_of_a_box_names_its_file_and_its_checksum(plan: BoxPlan, tmp_path: Path) -> None:
    box = tmp_path / "linux-6.12.box"
    box.write_bytes(b"abc")
    told = description(plan, box)
    assert told["name"] == "reloadlab/linux-6.12"
    assert told["versions"] == [
        {
            "version": "20231114.305419896",
            "providers": [
                {
                    "name": "libvirt",
                    "url": f"file://{box}",
                    "checksum_type": "sha256",
                    "checksum": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                }
            ],
        }
    ]

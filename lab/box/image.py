"""The disk of a box: a partition that syslinux boots from, and one with the root file system; as a qcow2 in a tar file.

Both file systems are written by programs that need no kernel for it: no loop device, no mount.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from lab.box.plan import BoxPlan
from lab.system import tools
from lab.vm import initramfs

GIB = 1 << 30
DISK = 10 * GIB
"""Bytes of the disk as the machine sees it; what is empty takes no room."""

NEEDED = {"virtio_pci": "CONFIG_VIRTIO_PCI", "virtio_blk": "CONFIG_VIRTIO_BLK", "ext4": "CONFIG_EXT4_FS"}
"""Modules (or parts of the image) without which the machine does not reach its root file system."""

INIT = Path(__file__).with_name("init.sh")

_SECTOR = 512
_BOOT_AT, _BOOT_SECTORS = 2048, 131072  # the usual 1 MiB in front; 64 MiB for an image and an initramfs
_ROOT_AT = _BOOT_AT + _BOOT_SECTORS
_BLOCK = 4096
_MASTER_BOOT_RECORD = Path("/usr/lib/syslinux/mbr/mbr.bin")
_CODE = 440  # bytes of a master boot record before the table of partitions
_SECONDS = 1800.0
_UUID = "5f1a5d0e-0b0f-4c6e-9b0b-7e10ad1ab000"

_SYSLINUX = """DEFAULT reloadlab
TIMEOUT 1
LABEL reloadlab
 LINUX /vmlinuz
 INITRD /initrd.img
 APPEND root=/dev/vda2 console=tty0 console=ttyS0 net.ifnames=0 panic=10 quiet {options}
"""


def write_box(plan: BoxPlan, root: Path, output: Path, work: Path) -> None:
    """Write the box of a root file system to `output`; `work` holds its parts meanwhile."""
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK)
    table = f"label: dos\nlabel-id: 0x{plan.digest[:8]}\nstart={_BOOT_AT},size={_BOOT_SECTORS},type=c,bootable\n"
    tools.run(["sfdisk", "--quiet", str(disk)], stdin=f"{table}start={_ROOT_AT},type=83\n")
    boot = work / "boot.fat"
    _write_boot(plan, boot, work)
    with disk.open("r+b") as file:
        file.write(_MASTER_BOOT_RECORD.read_bytes()[:_CODE])
        file.seek(_BOOT_AT * _SECTOR)
        file.write(boot.read_bytes())
    _write_root(plan, root, disk)
    image = work / "box.img"
    # One coroutine: the order of what is written does not depend on the machine.
    form = ["-c", "-m", "1", "-O", "qcow2", "-o", "compression_type=zstd"]
    tools.run(["qemu-img", "convert", *form, str(disk), str(image)], timeout=_SECONDS)
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK // GIB}
    (work / "metadata.json").write_text(json.dumps(metadata))
    owner = ["--owner=0", "--group=0", "--numeric-owner", "--mode=0644", f"--mtime=@{plan.time}"]
    # The image is compressed already.
    tools.run(
        ["tar", "--create", f"--file={output}", *owner, f"--directory={work}", "metadata.json", "box.img"],
        timeout=_SECONDS,
    )


def _write_boot(plan: BoxPlan, boot: Path, work: Path) -> None:
    """Write the file system that syslinux boots from: FAT, which it reads, with the kernel and an initramfs."""
    with boot.open("wb") as file:
        file.truncate(_BOOT_SECTORS * _SECTOR)
    label = ["-n", "BOOT", "-i", plan.digest[:8], "--invariant"]
    tools.run(["mkfs.vfat", *label, "-h", str(_BOOT_AT), str(boot)])
    (work / "initrd.img").write_bytes(initramfs.assemble(plan.kernel, INIT, NEEDED, {}))
    (work / "syslinux.cfg").write_text(_SYSLINUX.format(options=plan.options))
    files = {"vmlinuz": plan.kernel.image, **{name: work / name for name in ("initrd.img", "syslinux.cfg")}}
    date = ["env", f"SOURCE_DATE_EPOCH={plan.time}", "TZ=UTC"]
    for name, path in files.items():
        tools.run([*date, "mcopy", "-i", str(boot), str(path), f"::/{name}"])
    tools.run([*date, "syslinux", "--install", str(boot)])


def _write_root(plan: BoxPlan, root: Path, disk: Path) -> None:
    """Write the root file system into its partition."""
    blocks = (DISK - _ROOT_AT * _SECTOR) // _BLOCK
    date = ["env", f"SOURCE_DATE_EPOCH={plan.time}", f"E2FSPROGS_FAKE_TIME={plan.time}"]
    place = f"offset={_ROOT_AT * _SECTOR},hash_seed={_UUID},root_owner=0:0"
    options = ["-q", "-F", "-t", "ext4", "-L", "root", "-m", "0", "-b", str(_BLOCK), "-U", _UUID, "-E", place]
    tools.run([*date, "mke2fs", *options, "-d", str(root), str(disk), str(blocks)], timeout=_SECONDS)


def description(plan: BoxPlan, box: Path) -> dict[str, object]:
    """Return what Vagrant reads of a box before it takes it, with what we know of it besides (`reloadlab`)."""
    with box.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    provider = {"name": "libvirt", "url": f"file://{box}", "checksum_type": "sha256", "checksum": checksum}
    return {
        "name": f"reloadlab/{plan.name}",
        "versions": [{"version": plan.version, "providers": [provider]}],
        "reloadlab": {"digest": plan.digest, "kernel": plan.kernel.release, "debian": plan.release.number},
    }


def install(text: str, path: Path) -> None:
    """Let a file have a content, whole or not at all; readable by everybody."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text(text)
    os.chmod(unfinished, 0o644)
    unfinished.rename(path)

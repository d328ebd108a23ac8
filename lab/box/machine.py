"""Makes a root file system that of a machine: its user, its network, its way in, its kernel's modules, its wheels."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.box.root import WHEELS
from lab.system import tools
from lab.vm.kernels import Kernel

USER = "vagrant"

INSECURE_KEY = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v"
    "1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4"
    "O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk"
    "1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure pu"
    "blic key"
)
"""The key that Vagrant comes with: at the first `vagrant up` it puts one of its own in its place."""

_FILES = {
    "etc/fstab": "/dev/vda2 / ext4 defaults,noatime 0 1\n",
    "etc/sudoers.d/vagrant": f"{USER} ALL=(ALL) NOPASSWD: ALL\n",
    "etc/systemd/network/20-dhcp.network": (
        "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n"
    ),
    # Every machine makes host keys of its own at its first start.
    "etc/systemd/system/ssh.service.d/keys.conf": (
        "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n"
    ),
    "etc/ssh/sshd_config.d/vagrant.conf": "UseDNS no\nPasswordAuthentication no\n",
    "etc/machine-id": "uninitialized\n",
}
_ENABLED = ("systemd-networkd.service", "systemd-resolved.service", "ssh.service")
_MASKED = (
    *("systemd-networkd-wait-online.service", "systemd-timesyncd.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer"),
)


def make_machine(root: Path, hostname: str, kernel: Kernel, wheels: Path, *, time: int) -> None:
    """Change a root file system in place; `time` is the date of the user's password, which it has none of."""
    hosts = f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost\n"
    for name, content in (_FILES | {"etc/hostname": f"{hostname}\n", "etc/hosts": hosts}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "etc/sudoers.d/vagrant").chmod(0o440)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    chroot = ["env", f"SOURCE_DATE_EPOCH={time}", "chroot", str(root)]
    tools.run([*chroot, "useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", USER])
    _authorize(root / "home" / USER)
    tools.run([*chroot, "systemctl", "enable", *_ENABLED])
    tools.run([*chroot, "systemctl", "mask", *_MASKED])
    add_kernel(root, kernel)
    _copy(wheels, root / WHEELS)
    for left in ("var/cache/apt", "var/lib/apt/lists", "var/log/apt"):
        shutil.rmtree(root / left, ignore_errors=True)
        (root / left / "partial").mkdir(parents=True)


def add_kernel(root: Path, kernel: Kernel) -> None:
    """Put a kernel's modules into a root file system, where the package of its headers may have been before."""
    modules = root / "usr/lib/modules" / kernel.release
    _copy(kernel.modules, modules)
    # What a developer's own build points to is not in the box.
    for link in (modules / "build", modules / "source"):
        if link.is_symlink() and not (root / str(link.readlink()).lstrip("/")).exists():
            link.unlink()


def _copy(source: Path, place: Path) -> None:
    """Copy what is in a directory, with its times: a copy is no newer than what it is of."""
    place.mkdir(parents=True, exist_ok=True)
    tools.run(["cp", "-a", "--no-preserve=ownership", f"{source}/.", str(place)], timeout=600.0)


def _authorize(home: Path) -> None:
    """Let whoever has Vagrant's key in as the owner of a home directory."""
    owner = home.stat()
    ssh, keys = home / ".ssh", home / ".ssh" / "authorized_keys"
    ssh.mkdir(mode=0o700)
    keys.write_text(f"{INSECURE_KEY}\n")
    keys.chmod(0o600)
    for path in (ssh, keys):
        shutil.chown(path, owner.st_uid, owner.st_gid)

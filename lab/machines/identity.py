"""What tells one machine from another, so that nobody takes one for the other."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """The boot, the host's name and the network namespace that a process is in, and the kernel's release."""

    boot: str
    host: str
    network: int
    kernel: str

    def to_json(self) -> dict[str, str | int]:
        return asdict(self)


def identity() -> Identity:
    """Return the identity of where this process runs."""
    system = os.uname()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Identity(boot, system.nodename, os.stat("/proc/self/ns/net").st_ino, system.release)

from __future__ import annotations

from pathlib import Path

import pytest

from lab.box.build import planned
from lab.box.plan import RELEASES
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

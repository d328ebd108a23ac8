"""The facts of the machine that figures depend on."""

from __future__ import annotations

import gzip
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing

KERNEL_OPTIONS = (
    "HZ",
    "PREEMPT",
    "PREEMPT_DYNAMIC",
    "PREEMPT_RT",
    "BPF_JIT",
    "BPF_JIT_ALWAYS_ON",
    "DEBUG_KERNEL",
    "KASAN",
    "LOCKDEP",
    "PROVE_LOCKING",
    "KCOV",
    "MITIGATION_RETPOLINE",
    "RETPOLINE",
)
"""Options of the kernel's configuration that change what a system call or a BPF program costs."""

SYSCTLS = ("net/core/bpf_jit_enable", "net/core/bpf_jit_harden", "kernel/bpf_stats_enabled")

_CPU = "sys/devices/system/cpu"
_CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a result comes from. Text that the machine does not tell is empty; `frequency_mhz` is that of the moment.

    `cpus` may be used by this process. `options` are those of KERNEL_OPTIONS that are set, by name, and SYSCTLS.
    """

    architecture: str
    cpu_model: str
    cpus: int
    governor: str
    turbo: str
    frequency_mhz: float
    kernel: str
    kernel_build: str
    options: dict[str, str]
    mitigations: dict[str, str]
    clock: str
    clang: str
    mcpu: str
    python: str

    def differences(self, other: Machine) -> list[str]:
        """Return the facts in which two machines differ, as `name: ours, theirs`; the frequency is no such fact."""
        found = []
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "frequency_mhz" or mine == theirs:
                continue
            if isinstance(mine, dict):
                found += [
                    f"{key}: {mine.get(key, 'unset')!r}, {theirs.get(key, 'unset')!r}"
                    for key in sorted(mine.keys() | theirs.keys())
                    if mine.get(key) != theirs.get(key)
                ]
            else:
                found.append(f"{name}: {mine!r}, {theirs!r}")
        return found


def this_machine(root: Path = Path("/")) -> Machine:
    """Return the facts of the machine that this process runs on; its /sys, /proc and /boot are below `root`."""
    system = platform.uname()
    clang, mcpu = _compiler()
    first = min(os.sched_getaffinity(0))
    sysctls = {name: value for name in SYSCTLS if (value := _read(root / "proc/sys" / name))}
    return Machine(
        architecture=system.machine,
        cpu_model=_cpuinfo(root, "model name") or platform.processor(),
        cpus=len(os.sched_getaffinity(0)),
        governor=_read(root / _CPU / f"cpu{first}/cpufreq/scaling_governor"),
        turbo=_turbo(root),
        frequency_mhz=float(_cpuinfo(root, "cpu MHz") or 0),
        kernel=system.release,
        kernel_build=system.version,
        options=_kernel_options(root, system.release) | sysctls,
        mitigations={path.name: _read(path) for path in sorted((root / _CPU / "vulnerabilities").glob("*"))},
        clock=_read(root / _CLOCK),
        clang=clang,
        mcpu=mcpu,
        python=platform.python_version(),
    )


def _compiler() -> tuple[str, str]:
    try:
        compiler = probe_compiler()
    except ToolMissing:
        return "", ""
    return compiler.version, compiler.mcpu


def _cpuinfo(root: Path, name: str) -> str:
    """Return the value of a line of /proc/cpuinfo, of the first CPU that has it."""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else ""


def _turbo(root: Path) -> str:
    """Return `on` or `off`, as the driver of the frequency tells."""
    if boost := _read(root / _CPU / "cpufreq/boost"):
        return "on" if boost == "1" else "off"
    if no_turbo := _read(root / _CPU / "intel_pstate/no_turbo"):
        return "off" if no_turbo == "1" else "on"
    return ""


def _kernel_options(root: Path, release: str) -> dict[str, str]:
    packed, plain = root / "proc/config.gz", root / f"boot/config-{release}"
    text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else _read(plain)
    found = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))
    names = (f"CONFIG_{name}" for name in KERNEL_OPTIONS)
    return {name: found[name] for name in names if name in found}


def _read(path: Path) -> str:
    """Return the content of a file of the kernel, empty if the machine has none or does not show it."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, PermissionError):
        return ""

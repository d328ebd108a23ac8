"""The facts of the machine, as files of a kernel tell them that need not be the one that runs."""

from __future__ import annotations

import gzip
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from lab.results.machine import this_machine

CPU = f"sys/devices/system/cpu/cpu{min(os.sched_getaffinity(0))}"
CPUINFO = "processor\t: 0\nmodel name\t: A CPU @ 3.00GHz\ncpu MHz\t\t: 2999.998\n\nprocessor\t: 1\ncpu MHz\t\t: 800.0\n"
CONFIG = 'CONFIG_HZ=250\nCONFIG_PREEMPT_DYNAMIC=y\n# CONFIG_KASAN is not set\nCONFIG_HZ_250=y\nCONFIG_LSM="bpf"\n'
RELEASE = platform.release()


def below(root: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_facts_are_read_from_the_files_of_the_kernel(tmp_path: Path) -> None:
    files = {
        f"{CPU}/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/vulnerabilities/meltdown": "Mitigation: PTI\n",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
        "proc/cpuinfo": CPUINFO,
        f"boot/config-{RELEASE}": CONFIG,
        "proc/sys/net/core/bpf_jit_enable": "1\n",
    }
    found = this_machine(below(tmp_path, **files))
    assert (found.cpu_model, found.frequency_mhz, found.governor) == ("A CPU @ 3.00GHz", 2999.998, "performance")
    assert (found.clock, found.mitigations) == ("tsc", {"meltdown": "Mitigation: PTI"})
    assert found.options == {"CONFIG_HZ": "250", "CONFIG_PREEMPT_DYNAMIC": "y", "net/core/bpf_jit_enable": "1"}


@pytest.mark.parametrize(
    ("file", "text", "turbo"),
    [
        ("cpufreq/boost", "1\n", "on"),
        ("cpufreq/boost", "0\n", "off"),
        ("intel_pstate/no_turbo", "1\n", "off"),
        ("intel_pstate/no_turbo", "0\n", "on"),
        ("online", "0-1\n", ""),
    ],
)
def test_each_driver_tells_of_turbo_in_its_own_way(file: str, text: str, turbo: str, tmp_path: Path) -> None:
    assert this_machine(below(tmp_path, **{f"sys/devices/system/cpu/{file}": text})).turbo == turbo


def test_the_configuration_of_the_kernel_itself_is_believed_first(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        f"boot/config-{RELEASE}": CONFIG,
        "proc/config.gz": gzip.compress(b"CONFIG_HZ=1000\n"),
    }
    assert this_machine(below(tmp_path, **files)).options == {"CONFIG_HZ": "1000"}


def test_what_a_machine_does_not_tell_is_empty(tmp_path: Path) -> None:
    found = this_machine(tmp_path)
    assert (found.governor, found.turbo, found.frequency_mhz, found.clock) == ("", "", 0.0, "")
    assert (found.options, found.mitigations) == ({}, {})
    assert (found.kernel, found.cpus) == (RELEASE, len(os.sched_getaffinity(0)))


def test_differences_name_both_and_leave_out_the_frequency(tmp_path: Path) -> None:
    one = this_machine(below(tmp_path, **{"proc/cpuinfo": CPUINFO, f"boot/config-{RELEASE}": CONFIG}))
    other = replace(one, governor="powersave", frequency_mhz=1.0, options={"CONFIG_HZ": "1000"})
    assert one.differences(other) == [
        "governor: '', 'powersave'",
        "CONFIG_HZ: '250', '1000'",
        "CONFIG_PREEMPT_DYNAMIC: 'y', 'unset'",
    ]

"""The console of a virtual machine, played by a shell; and QEMU's command."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datapath.errors import ToolMissing
from lab.vm import machine
from lab.vm.kernels import Kernel
from lab.vm.machine import MachineFailed, memory_of, qemu_argv, run, without_kvm
from tests.lab.labs import ROOT

KERNEL = Kernel("6.1", "6.1.0", Path("/k/vmlinuz"), Path("/k/lib/modules/6.1.0"))


def played(script: str, *, silence: float = 60.0) -> tuple[machine.Ended, list[str]]:
    """Return how a machine ended whose console is what a script prints, and what was said."""
    said: list[str] = []
    return run(["sh", "-c", script], "6.1", "WORD", silence=silence, say=said.append), said


def test_output_begins_when_the_guest_is_ready_and_ends_with_its_exit_code() -> None:
    ended, said = played(
        "printf 'boot\\r\\nWORD ready 4.5\\r\\none\\r\\n\\033[1mtwo\\033[m\\r\\nWORD ended 7\\r\\n'; sleep 60"
    )
    assert (ended.exit_code, ended.boot_seconds) == (7, 4.5)
    assert said == ["one", "two"]


def test_output_may_end_in_the_middle_of_a_line() -> None:
    ended, said = played("printf '[1.0] bootWORD ready 4.5\\none\\ntwoWORD ended 7[ 12.5] kernel\\n'; sleep 60")
    assert (ended.exit_code, ended.boot_seconds) == (7, 4.5)
    assert said == ["one", "two"]


def test_a_line_without_an_end_comes_in_pieces() -> None:
    ended, said = played("echo WORD ready 4.5; head -c 200000 /dev/zero | tr '\\0' x; echo WORD ended 7; sleep 60")
    assert ended.exit_code == 7
    assert len(said) > 1
    assert "".join(said) == 200_000 * "x"


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_qemu_means_nothing(code: int) -> None:
    with pytest.raises(MachineFailed) as caught:
        played(f"echo WORD ready 1.0; echo Kernel panic; exit {code}")
    assert str(caught.value) == ("kernel 6.1: it ended without a word; the last lines of its console:\n  Kernel panic")


def test_only_the_guests_own_word_counts() -> None:
    with pytest.raises(MachineFailed, match="ended without a word, before the command began"):
        played("echo ended 0; echo OTHER ended 0")


def test_a_machine_that_is_silent_is_killed_and_its_last_lines_are_told() -> None:
    with pytest.raises(MachineFailed) as caught:
        played("seq 30; exec sleep 1000", silence=0.5)
    assert caught.value.reason == "it said nothing for 0.5 s, apart from its kernel, and was killed"
    assert caught.value.console == tuple(str(number) for number in range(11, 31))


HUNG = "while sleep 0.1; do printf '[ 12.345678][   C1] watchdog: BUG: soft lockup\\r\\n'; done"


def test_a_kernel_that_only_complains_is_killed() -> None:
    """What hangs is told again and again by the kernel itself: that is no sign of life of the command."""
    with pytest.raises(MachineFailed, match="it said nothing for 1 s, apart from its kernel") as caught:
        played(f"echo WORD ready 1; echo one; {HUNG}", silence=1)
    assert caught.value.console[-1] == "[ 12.345678][   C1] watchdog: BUG: soft lockup"


def test_a_command_that_speaks_among_complaints_goes_on() -> None:
    speaking = "for i in 1 2 3 4 5 6; do printf '[ 1.0] complaint\\n.'; sleep 0.5; done; echo; echo WORD ended 7"
    ended, said = played(f"echo WORD ready 1; {speaking}; sleep 60", silence=2)
    assert (ended.exit_code, said[0]) == (7, "[ 1.0] complaint")


def test_a_machine_does_not_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    script = (
        "from lab.vm.machine import run\n"
        f"run(['sh', '-c', 'echo $$ > {tmp_path}/pid; echo; exec sleep 1000'], '6.1', 'WORD', silence=600, say=print)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    watched = None
    while watched is None:
        assert process.poll() is None
        text = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""
        watched = os.pidfd_open(int(text)) if text.endswith("\n") else None
    process.kill()
    process.wait()
    # Readable once the machine is gone.
    assert select.select([watched], [], [], 30)[0]
    os.close(watched)


def test_qemu_is_named_with_its_package_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=r"qemu-system-x86_64 not found: apt-get install qemu-system-x86$"):
        qemu_argv(KERNEL, Path("/i"), Path("/s"), cpus=1, kvm=True)


def test_a_machine_of_another_processor_is_one_line() -> None:
    """The guest runs this machine's programs: on its own, the kernel would only say that it finds no init."""
    # The kernel then says i686, as another processor's says aarch64.
    code = "import sys; from lab.vm.machine import find_qemu; find_qemu()"
    done = subprocess.run(
        ["setarch", "i686", sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.endswith("kernels are booted on x86_64 alone, and this processor is i686: use another machine")


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu-system-x86_64").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("qemu")
def test_the_hosts_files_are_read_only_but_for_one_directory() -> None:
    argv = qemu_argv(KERNEL, Path("/i"), Path("/s,1"), cpus=2, kvm=False)
    shared = [argv[at + 1] for at, word in enumerate(argv) if word == "-fsdev"]
    assert [word.split(",path=")[1] for word in shared if "readonly=on" not in word] == ["/s,,1"]
    assert len(shared) == 3


@pytest.mark.parametrize(
    ("cpus", "total", "memory"), [(1, 2000, 4096), (8, 16000, 4096), (32, 64000, 16384), (64, 32000, 16000)]
)
def test_a_machine_of_many_cpus_has_memory_for_a_scenario_on_each(cpus: int, total: int, memory: int) -> None:
    """But no more than half of what there is: QEMU would not start."""
    assert memory_of(cpus, total) == memory


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize(("kvm", "words"), [(True, ["kvm", "host"]), (False, ["tcg,thread=multi", "max"])])
def test_emulation_leaves_out_what_qemu_emulates_wrongly(kvm: bool, words: list[str]) -> None:
    argv = qemu_argv(KERNEL, Path("/i"), Path("/s"), cpus=1, kvm=kvm)
    assert [argv[argv.index(option) + 1] for option in ("-accel", "-cpu")] == words
    assert argv[argv.index("-m") + 1] == "4096"
    words = argv[argv.index("-append") + 1].split()
    assert ("clearcpuid=141" in words) == (not kvm)
    # By it, what the kernel says is told from what the command says.
    assert "printk.time=1" in words


@pytest.mark.parametrize(
    ("flags", "said"),
    [("fpu vmx sse", ""), ("fpu svm", ""), ("fpu vmx_other sse", "the processor has neither vmx nor svm")],
)
def test_kvm_without_the_processors_help_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, said: str
) -> None:
    (tmp_path / "kvm").touch()
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "KVM", tmp_path / "kvm")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert without_kvm().endswith(said)
    assert bool(without_kvm()) == bool(said)


def test_a_machine_without_kvm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "KVM", tmp_path / "kvm")
    assert without_kvm() == f"there is no {tmp_path}/kvm"
    assert machine.silence_allowed() == 900.0


def test_an_interrupt_ends_the_machine(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "echo WORD ready 1; echo $$; exec sleep 1000"], "6.1", "WORD", silence=60, say=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

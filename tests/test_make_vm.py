"""`make vm` (tools/vm): with a stand-in for Vagrant that says what Vagrant 2.3.4 says, and runs commands here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
Start = Callable[..., subprocess.Popen[str]]
Make = Callable[..., subprocess.CompletedProcess[str]]

VAGRANT = r"""#!/bin/sh
echo "$*" >>"$STAND_IN/called"
error=",error-exit,Vagrant::Errors::${FAILS:-},Words of Vagrant.\\nMore of them."
case "$1 ${FAILS:-}" in
    "status "*[a-z][A-Z]*) echo "1796092511,$error"; exit 1 ;;
    "status "*) echo "1796092467,$2,provider-name,${PROVIDER:-libvirt}"; echo "1796092468,$2,state,${STATE:-running}" ;;
    "up WAITS") exec waits ;;
    "$1 $1") echo "$1 fails" >&2; exit 1 ;;
    "ssh "*) shift 2; [ "$1" = --command ] || exit 9; PATH="$STAND_IN/there:$PATH"; exec sh -c "$2" ;;
esac
"""
MAKE_THERE = """#!{python}
import json, os, sys
print(json.dumps(sys.argv[1:]))
sys.exit(int(os.environ.get("CODE", "0")))
"""
# Blocked before it says so: a shell that gets the signal before its `sleep` begins would sleep to the end.
WAITS = """#!{python}
import os, pathlib, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("began", flush=True)
signal.sigwait([signal.SIGINT])
time.sleep(0.5)
pathlib.Path(os.environ["STAND_IN"], "cleared").touch()
sys.exit(1)
"""
WITHOUT_LIBVIRT = (
    "echo 'error: failed to connect to the hypervisor' >&2\n"
    "echo \"error: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory\" >&2\n"
    "exit 1"
)
HANDED_ON = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "KERNEL", "ARGS")
INSTALL = "apt-get install vagrant vagrant-libvirt libvirt-daemon-system qemu-system-x86"


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A directory with all that a machine is started with, and a few tools of the system."""
    for name in ("make", "sh", "dirname", "grep", "sed", "cut", "tail", "env", "sleep"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    script(tmp_path / "vagrant", VAGRANT)
    script(tmp_path / "waits", WAITS.format(python=sys.executable))
    for name in ("rsync", "ssh", "virsh", "qemu-system-x86_64"):
        script(tmp_path / name, "#!/bin/sh\nexit 0\n")
    (tmp_path / "there").mkdir()
    script(tmp_path / "there" / "make", MAKE_THERE.format(python=sys.executable))
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def start(stand_in: Path) -> Start:
    def started(*words: str, **environment: str) -> subprocess.Popen[str]:
        # Of a make that runs these tests, nothing is to be handed on.
        own = {name: value for name, value in os.environ.items() if name not in HANDED_ON}
        own |= {"PATH": str(stand_in), "STAND_IN": str(stand_in)} | environment
        return subprocess.Popen(
            ["make", "-s", "-C", str(ROOT), "vm", *words],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    return started


@pytest.fixture
def make_vm(start: Start) -> Make:
    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with start(*words, **environment) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return call


def called(stand_in: Path) -> list[str]:
    return (stand_in / "called").read_text().splitlines()


def first_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    line, made = done.stderr.splitlines()
    assert made.startswith("make: ***")
    return line


@pytest.mark.parametrize(
    ("kernel", "machine"),
    [
        ((), "debian12"),
        (("KERNEL=6.1",), "debian12"),
        (("KERNEL=6.12",), "linux-6.12"),
        (("KERNEL=6.12-trixie",), "debian13"),
        (("KERNEL=newest",), "linux-newest"),
        (("KERNEL=6.19.0-rc1+",), "linux-6.19.0-rc1+"),
    ],
    ids=lambda value: "-".join(value) or "default" if isinstance(value, tuple) else value,
)
def test_machine_is_started_filled_and_set_up_each_time(
    make_vm: Make, stand_in: Path, kernel: tuple[str, ...], machine: str
) -> None:
    """So the second call does the same as the first, and as one after a call that was broken off."""
    steps = [
        f"status {machine} --machine-readable",
        *(f"up --no-provision {machine}", f"rsync {machine}", f"provision {machine}"),
        f"ssh {machine} --command make -C /reloadlab test ARGS='' -- -tt",
    ]
    for times in (1, 2):
        done = make_vm(*kernel)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == ["-C", "/reloadlab", "test", "ARGS="]
        assert called(stand_in) == steps * times


@pytest.mark.parametrize("step", ["up", "rsync", "provision"])
def test_call_after_one_that_was_broken_off_begins_anew(make_vm: Make, stand_in: Path, step: str) -> None:
    assert first_line(make_vm(FAILS=step)) == f"{step} fails"
    before = called(stand_in)
    assert before[-1].split()[0] == step
    assert make_vm().returncode == 0
    assert [line.split()[0] for line in called(stand_in)[len(before) :]] == [
        "status",
        "up",
        "rsync",
        "provision",
        "ssh",
    ]


def test_disk_that_a_killed_call_left_is_deleted_before_a_machine_is_made(make_vm: Make, stand_in: Path) -> None:
    """`vagrant destroy` does it, of a machine that there is not."""
    assert make_vm(STATE="not_created").returncode == 0
    assert called(stand_in)[1:3] == ["destroy --force debian12", "up --no-provision debian12"]
    done = make_vm(STATE="not_created", FAILS="destroy")
    assert done.returncode == 2
    assert done.stderr.splitlines()[:2] == [
        "destroy fails",
        "vm: libvirt has that name from another checkout (then rename this directory), or from a call that was killed "
        "(then virsh undefine NAME)",
    ]
    assert called(stand_in)[-1] == "destroy --force debian12"


def test_ctrl_c_waits_for_vagrant_to_clear_up_and_goes_no_further(start: Start, stand_in: Path) -> None:
    with start(FAILS="WAITS") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == -signal.SIGINT
        assert (stand_in / "cleared").exists()
    assert called(stand_in)[-1] == "up --no-provision debian12"


@pytest.mark.parametrize("words", ["-k pins -x", "-k 'pins and not \"slow\"'", 'a\\b "$HOME" `x` #c'])
def test_arguments_reach_the_tests_as_they_are(make_vm: Make, words: str) -> None:
    # Each make on the way takes `$$` for one.
    done = make_vm(f"ARGS={words.replace('$', '$$')}")
    assert json.loads(done.stdout)[3] == f"ARGS={words.replace('$', '$$')}"


def test_exit_code_is_not_0_if_the_tests_failed(make_vm: Make) -> None:
    assert make_vm(CODE="2").returncode == 2


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (["vagrant"], f"vm: a machine cannot be started without vagrant: {INSTALL}"),
        (["vagrant", "rsync", "ssh"], f"vm: a machine cannot be started without vagrant, rsync, ssh: {INSTALL} rsync "),
        (["qemu-system-x86_64"], "vm: there is no QEMU for libvirt to run: apt-get install qemu-system-x86"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_is_missing_is_one_line_with_the_remedy(
    make_vm: Make, stand_in: Path, missing: list[str], line: str
) -> None:
    for name in missing:
        (stand_in / name).unlink()
    assert first_line(make_vm()).startswith(line)
    assert not (stand_in / "called").exists() or len(called(stand_in)) == 1


def test_libvirt_that_does_not_run_is_one_line_with_the_remedy(make_vm: Make, stand_in: Path) -> None:
    script(stand_in / "virsh", f"#!/bin/sh\n{WITHOUT_LIBVIRT}\n")
    assert first_line(make_vm()) == (
        "vm: libvirt does not answer (Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or "
        "directory): systemctl start libvirtd, or log in as a member of the group libvirt"
    )
    assert len(called(stand_in)) == 1
    # Who has VirtualBox needs none of it.
    assert make_vm(PROVIDER="virtualbox").returncode == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("MachineNotFound", "vm: no machine has kernel 9.9: make box KERNEL=9.9"),
        ("NoDefaultProvider", "vm: Vagrant has no provider: apt-get install vagrant-libvirt "),
        ("ProviderNotUsable", "vm: Vagrant cannot use virtualbox: install it, or unset VAGRANT_DEFAULT_PROVIDER"),
    ],
)
def test_what_vagrant_refuses_is_one_line_with_the_remedy(make_vm: Make, error: str, line: str) -> None:
    done = make_vm("KERNEL=9.9", FAILS=error, VAGRANT_DEFAULT_PROVIDER="virtualbox")
    assert first_line(done).startswith(line)


def test_words_of_vagrant_that_nobody_foresaw_are_told(make_vm: Make) -> None:
    done = make_vm(FAILS="LocalDataDirectoryNotAccessible")
    assert done.returncode == 2
    assert "Words of Vagrant." in done.stderr
    assert "vm: vagrant status debian12 failed: its own words are above" in done.stderr


@pytest.mark.parametrize(
    ("kernel", "line"),
    [
        ("6 7", "vm: KERNEL=6 7 is no kernel: give a version such as 6.12, or newest"),
        ("$$(id)", "vm: KERNEL=$(id) is no kernel: give a version such as 6.12, or newest"),
        ("-h;ls", "vm: KERNEL=-h;ls is no kernel: give a version such as 6.12, or newest"),
        (
            "./vmlinuz",
            "vm: KERNEL=./vmlinuz is a path: make box KERNEL=./vmlinuz, then name the release of that kernel",
        ),
    ],
)
def test_what_is_no_kernel_is_one_line(make_vm: Make, stand_in: Path, kernel: str, line: str) -> None:
    assert first_line(make_vm(f"KERNEL={kernel}")) == line
    assert not (stand_in / "called").exists()

"""A kernel that is really booted: the newest that was fetched (RELOADLAB_KERNELS), where QEMU is."""

from __future__ import annotations

import shutil

import pytest

from lab.cli.main import main
from lab.vm.kernels import fetched, kernels_directory
from lab.vm.machine import QEMU

MISSING = [name for name in (QEMU, "busybox", "modprobe") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' '.join(MISSING)}"),
]


@pytest.fixture
def release() -> str:
    """The newest kernel that was fetched."""
    found = fetched()
    if not found:
        pytest.skip(f"no kernel in {kernels_directory()}: reloadlab vm fetch 6.1")
    return found[-1].release


def test_a_command_runs_on_another_kernel_and_its_exit_code_is_known(
    release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vm", "exec", release, "--", "sh", "-c", "uname -r; mount -t debugfs; exit 7"]) == 7
    named, debugfs = capsys.readouterr().out.splitlines()
    assert named == release
    assert debugfs.startswith("debugfs on /sys/kernel/debug ")

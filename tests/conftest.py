"""What all tests need: signals that arrive, and a BPF file system."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.system import tools


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C through even if whoever started the tests has it ignored (a background job, nohup, some CI).

    A process inherits that, and so would every command that a test starts in order to interrupt it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """Mount a BPF file system of the test's own."""
    mount = tmp_path / "bpffs"
    mount.mkdir()
    tools.run(["mount", "-t", "bpf", "bpf", str(mount)])
    yield mount
    tools.run(["umount", str(mount)])

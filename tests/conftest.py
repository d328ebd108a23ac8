"""What all tests need: signals that arrive, memory for maps, and a BPF file system."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.system import tools
from lab.system.cache import CACHE_VARIABLE
from lab.system.limits import raise_locked_memory
from lab.system.pace import calibrate


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C through even if whoever started the tests has it ignored (a background job, nohup, some CI).

    A process inherits that, and so would every command that a test starts in order to interrupt it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    raise_locked_memory()
    # Workers inherit it.
    calibrate()


def pytest_xdist_auto_num_workers() -> int:
    """Half as many workers again as there are CPUs: tests wait for packets and processes for a third of their time."""
    return len(os.sched_getaffinity(0)) * 3 // 2


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Begin without anything compiled; what one test compiles, C or Python, no process of any worker compiles again.

    Tests start some thousand processes of ours. Where no bytecode is written (PYTHONDONTWRITEBYTECODE), each would
    compile all of its modules.
    """
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(session / "objects"))
        patch.setenv("PYTHONPYCACHEPREFIX", str(session / "bytecode"))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """Mount a BPF file system of the test's own."""
    mount = tmp_path / "bpffs"
    mount.mkdir()
    tools.run(["mount", "-t", "bpf", "bpf", str(mount)])
    yield mount
    tools.run(["umount", str(mount)])

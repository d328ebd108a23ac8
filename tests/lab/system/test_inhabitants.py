from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from lab.system.inhabitants import inhabitants, kill_inhabitants
from lab.system.netns import inode
from tests.lab import wires
from tests.lab.labs import start
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

FORKING = "import os, time; print(flush=True); os.fork(); os.fork(); time.sleep(60)"


def test_all_of_a_namespace_and_nobody_else() -> None:
    with wires.namespace() as path, wires.namespace() as other:
        mine = frozenset({inode(Path(path))})
        with (
            start(nsenter(path, sys.executable, "-c", FORKING)) as inside,
            start(nsenter(other, sys.executable, "-c", FORKING)) as outside,
        ):
            assert inside.stdout is not None
            assert outside.stdout is not None
            assert (inside.stdout.readline(), outside.stdout.readline()) == ("\n", "\n")
            assert inside.pid in set(inhabitants(mine))
            kill_inhabitants(mine)
            assert list(inhabitants(mine)) == []
            assert inside.wait(timeout=1) == -9
            assert outside.pid in set(inhabitants({inode(Path(other))}))
            kill_inhabitants({inode(Path(other))})


def test_own_namespace_spares_us_and_our_ancestors() -> None:
    found = set(inhabitants({inode(Path("/proc/self/ns/net"))}))
    assert os.getpid() not in found
    assert os.getppid() not in found


def test_nobody_there_costs_no_time() -> None:
    begin = time.monotonic()
    with wires.namespace() as path:
        kill_inhabitants({inode(Path(path))}, timeout=30)
    assert time.monotonic() - begin < 5

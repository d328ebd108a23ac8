from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.system.limits import BASE_DESCRIPTORS, descriptors_of
from tests.lab.labs import ROOT

CAP_SYS_RESOURCE = 24  # include/uapi/linux/capability.h

pytestmark = pytest.mark.privileged

SHOW = (
    "import resource\nfrom lab.system.limits import require_descriptors\n"
    "try:\n    require_descriptors(200, 'lab demo with 72 pods')\n"
    "except Exception as error:\n    print(error)\n"
    "print(*resource.getrlimit(resource.RLIMIT_NOFILE), *resource.getrlimit(resource.RLIMIT_MEMLOCK))"
)


def limited(*limits: str, drop: bool = False) -> list[str]:
    """Return what a process says that begins with these limits."""
    argv = ["prlimit", *limits, sys.executable, "-c", SHOW]
    if drop:
        argv = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", *argv]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def may_exceed_limits() -> bool:
    """Tell whether this process has CAP_SYS_RESOURCE."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) & 1 << CAP_SYS_RESOURCE)


@pytest.mark.skipif(not may_exceed_limits(), reason="needs CAP_SYS_RESOURCE")
def test_memory_is_not_limited_where_that_may_be_changed() -> None:
    assert limited("--nofile=64:4096", "--memlock=65536:131072") == ["4096 4096 -1 -1"]


def test_without_the_capability_the_hard_limit_is_the_end() -> None:
    assert limited("--nofile=64:4096", "--memlock=65536:131072", drop=True) == ["4096 4096 131072 131072"]


def test_every_command_begins_with_all_the_locked_memory_that_it_may_have() -> None:
    script = "import resource; from lab.cli.main import main; main(['ls'])"
    shown = f"{script}; print(*resource.getrlimit(resource.RLIMIT_MEMLOCK))"
    argv = ["prlimit", "--memlock=65536:131072", sys.executable, "-c", shown]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == ("-1 -1" if may_exceed_limits() else "131072 131072")


def test_too_low_a_hard_limit_is_one_line() -> None:
    line, after = limited("--nofile=64:199", "--memlock=65536:131072")
    assert line == (
        "lab demo with 72 pods needs 200 file descriptors, the hard limit is 199; "
        "raise it as root: ulimit -n 200 (systemd: LimitNOFILE=200)"
    )
    assert after.startswith("199 199 ")


def test_descriptors_grow_with_the_pods() -> None:
    assert (descriptors_of(0), descriptors_of(72)) == (BASE_DESCRIPTORS, BASE_DESCRIPTORS + 72)

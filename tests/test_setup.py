"""What `make setup` says (tools/setup): with stand-ins for the package manager, for Python and for pip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

APT_GET = """#!/bin/sh
echo "W: apt does not have a stable CLI interface"
case "$*" in
    *" install "*) [ -z "${APT_FAILS:-}" ] || { echo "E: Unable to locate package"; exit 100; }
        touch "$STAND_IN/installed"; ln -sf sh "$STAND_IN/clang-16" ;;
esac
"""
DPKG_QUERY = """#!/bin/sh
case "$*" in *python3-bpfcc) [ -e "$STAND_IN/installed" ] || exit 1 ;; esac
printf installed
"""
APT_CACHE = """#!/bin/sh
[ "$2" != clang-16 ] || echo "  Candidate: 1:16"
"""
PYTHON = """#!/bin/sh
case "$*" in
    --version) echo Python 3.11.2 ;;
    "-m venv "*) mkdir -p .venv/bin; cp "$STAND_IN/pip" .venv/bin/python ;;
esac
"""
PIP = """#!/bin/sh
echo "WARNING: Location 'https://elsewhere/' is ignored: it is either a non-existing path or lacks a specific scheme."
echo "WARNING: Running pip as the 'root' user"
[ -z "${PIP_FAILS:-}" ] || { echo "ERROR: No matching distribution found"; exit 1; }
"""
STEPS = [
    "setup: apt-get update",
    "setup: apt-get install -y --no-install-recommends python3-bpfcc clang-16",
    "setup: building .venv with the packages of requirements.lock",
    "setup: installing reloadlab in .venv",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with what tools/setup reads, and a PATH in which nothing is installed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in (
        "sh",
        "dirname",
        "env",
        "grep",
        "cat",
        "mktemp",
        "rm",
        "sha256sum",
        "uname",
        "touch",
        "ln",
        "mkdir",
        "cp",
    ):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    stand_ins = {"apt-get": APT_GET, "apt-cache": APT_CACHE, "dpkg-query": DPKG_QUERY, "python3": PYTHON, "pip": PIP}
    for name, script in {**stand_ins, "dpkg": "#!/bin/sh\necho amd64\n"}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    tools = tmp_path / "checkout" / "tools"
    tools.mkdir(parents=True)
    text = (ROOT / "tools" / "setup").read_text()
    assert "PYTHON=/usr/bin/python3\n" in text
    (tools / "setup").write_text(text.replace("PYTHON=/usr/bin/python3\n", f"PYTHON={programs}/python3\n"))
    (tools / "as-root").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "as-root").chmod(0o755)
    for name in ("requirements.lock", "pyproject.toml", "setup.py"):
        (tools.parent / name).write_text(name)
    return tools.parent


def setup(checkout: Path, **variables: str) -> tuple[int, list[str]]:
    """Return the exit code, and the lines but for those about headers, which depend on the machine."""
    programs = checkout.parent / "bin"
    done = subprocess.run(
        ["sh", checkout / "tools" / "setup"],
        env={"PATH": str(programs), "STAND_IN": str(programs), "TMPDIR": os.fspath(checkout.parent), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, [line for line in done.stderr.splitlines() if "headers" not in line]


def test_each_step_is_one_line_and_a_second_run_says_nothing(checkout: Path) -> None:
    """Not what apt and pip say of themselves."""
    assert setup(checkout) == (0, STEPS)
    assert setup(checkout) == (0, [])


def test_what_the_package_manager_says_is_shown_if_it_fails(checkout: Path) -> None:
    assert setup(checkout, APT_FAILS="1") == (
        1,
        [
            *STEPS[:2],
            "W: apt does not have a stable CLI interface",
            "E: Unable to locate package",
            "setup: apt-get could not install python3-bpfcc clang-16 (its own words are above; is the network there?)",
        ],
    )


def test_what_pip_says_is_shown_if_it_fails_but_for_the_places_of_the_machine(checkout: Path) -> None:
    assert setup(checkout, PIP_FAILS="1") == (
        1,
        [
            *STEPS[:3],
            "WARNING: Running pip as the 'root' user",
            "ERROR: No matching distribution found",
            "setup: pip could not install requirements.lock (its own words are above; is the network there?)",
        ],
    )
    # It begins anew.
    assert setup(checkout) == (0, STEPS[2:])

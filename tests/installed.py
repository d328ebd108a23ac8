"""reloadlab as a user has it: a wheel in a virtual environment of its own, made from the system's Python.

Nothing is downloaded: what reloadlab requires is copied from the environment that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "/usr/bin/python3"
NOTHING: Mapping[str, str] = {}
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

SOURCES = ("bpf", "datapath", "lab", "reloadlab", "scenarios")
PROJECT = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a run directory for the labs of its commands."""

    directory: Path
    run_directory: Path

    @property
    def bytecode(self) -> Path:
        return self.directory.with_name("bytecode")

    def command(self, name: str) -> str:
        return str(self.directory / "bin" / name)

    def run(
        self, *argv: str, cwd: Path, timeout: float = 400, env: Mapping[str, str] = NOTHING
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with nothing of this process's environment but PATH; bytecode goes to a place of its own."""
        clean = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C.UTF-8"}
        clean |= {"RELOADLAB_RUN": str(self.run_directory), "PYTHONPYCACHEPREFIX": str(self.bytecode)} | dict(env)
        return subprocess.run(
            argv,
            cwd=cwd,
            env=clean,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )


def build_wheel(place: Path) -> Path:
    """Build the wheel from a copy of the sources, in which an earlier build has left a module that is gone."""
    copy = place / "sources"
    copy.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROJECT:
        shutil.copy(ROOT / name, copy)
    left = copy / "build/lib/reloadlab/_packages/lab/gone.py"
    left.parent.mkdir(parents=True)
    left.touch()
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(place), str(copy))
    (wheel,) = place.glob("*.whl")
    return wheel


def make_environment(place: Path, wheel: Path, run_directory: Path) -> Environment:
    """Make the environment and install the wheel into it. Python's bcc is the system's, as README.md says."""
    directory = place / "environment"
    subprocess.run([PYTHON, "-m", "venv", "--system-site-packages", "--without-pip", directory], timeout=60, check=True)
    (site,) = directory.glob("lib/python3*/site-packages")
    for required in required_distributions(wheel):
        copy_distribution(required, site)
    python = str(directory / "bin/python")
    _pip("--python", python, "install", "--no-deps", "--no-index", str(wheel))
    (program,) = distribution("pytest").entry_points.select(group="console_scripts", name="pytest")
    script = directory / "bin/pytest"
    script.write_text(f"#!{python}\nimport sys, {program.module}\nsys.exit({program.module}.{program.attr}())\n")
    script.chmod(0o755)
    return Environment(directory, run_directory)


def required_distributions(wheel: Path) -> list[Distribution]:
    """Return what a wheel requires, directly or not, as it is installed here."""
    (package,) = distributions(path=[str(wheel)])
    found: dict[str, Distribution] = {}
    wanted = list(_requirements(package))
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = distribution(name)
            wanted += _requirements(found[name])
    return list(found.values())


def _requirements(package: Distribution) -> Iterator[str]:
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def copy_distribution(package: Distribution, site: Path) -> None:
    """Copy its modules and its metadata, but no programs."""
    for file in package.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(package.locate_file(file)), target)


def _pip(*arguments: str) -> None:
    argv: Sequence[str] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

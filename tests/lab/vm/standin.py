"""A stand-in for QEMU, for what surrounds a machine: it has the machine's arguments, console and shared directory.

Its guest is a function in Python, which a test writes. What boots, test_boot.py looks at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from lab.cli.report import run_json
from lab.scenario.records import Record
from lab.system.launch import module_argv
from lab.vm.initramfs import NEEDED
from lab.vm.kernels import KERNELS_VARIABLE
from lab.vm.machine import QEMU
from tests.lab.labs import ROOT
from tests.lab.vm.samples import kernel_image

_PROGRAM = """#!/bin/bash
exec -a "$0" {python} -I {guest} "$@"
"""

_GUEST = """
import json, os, pathlib, sys, time

words = sys.argv[1:]
(share,) = (pathlib.Path(word.partition("path=")[2]) for word in words if word.startswith("local,id=share,"))
release = pathlib.Path(words[words.index("-kernel") + 1]).parent.name
job = json.loads((share / "job.json").read_text())
out = share / "out"

def say(line):
    print(line, flush=True)

def run_json(**outcomes):
    written = json.loads({run_json!r})
    (row,) = written["scenarios"]
    own = [{{"name": name, "outcome": outcome, "message": f"why {{name}}"}} for name, outcome in outcomes.items()]
    written["scenarios"] = [row | each for each in own]
    written["machine"]["kernel"] = release
    (out / "run.json").write_text(json.dumps(written))

say("the kernel boots")
say(job["word"] + " ready 4.5")
{body}
say(job["word"] + " ended 0")
time.sleep(600)
"""

_DOWN = """
import sys
sys.path.insert(0, {root!r})
import lab.system.launch
lab.system.launch.ROOT = "."
from lab.cli.main import main
sys.exit(main())
"""


class StandIn:
    """Kernels 6.1 and 6.12 that have all they need, and a QEMU whose guest does what `body` says."""

    def __init__(self, directory: Path, body: str) -> None:
        if shutil.which("depmod") is None:
            pytest.skip("needs depmod (package kmod)")
        self.directory = directory
        self.out = directory / "out"
        guest = directory / "guest.py"
        written = run_json([Record("one")], None, 1.0, complete=True)
        guest.write_text(_GUEST.format(body=body, run_json=json.dumps(written)))
        programs = directory / "bin"
        programs.mkdir()
        (programs / QEMU).write_text(_PROGRAM.format(python=sys.executable, guest=guest))
        (programs / QEMU).chmod(0o755)
        for release in ("6.1.0-a", "6.12.0-a"):
            modules = directory / "kernels" / release / "lib" / "modules" / release
            modules.mkdir(parents=True)
            (modules / "modules.order").touch()
            (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in NEEDED))
            (directory / "kernels" / release / "vmlinuz").write_bytes(kernel_image(release))
            argv = ["depmod", "--basedir", str(modules.parents[2]), release]
            subprocess.run(argv, capture_output=True, timeout=60, check=True)
        (directory / "tmp").mkdir()
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            KERNELS_VARIABLE: str(directory / "kernels"),
            "TMPDIR": str(directory / "tmp"),
        }

    def start(self, *words: str) -> Call:
        """Start a command of ours."""
        return Call(
            subprocess.Popen(
                module_argv("lab.cli.main", *words),
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def run(self, *words: str) -> Call:
        """Run a command of ours to its end."""
        with self.start(*words) as call:
            call.end()
        return call

    def run_beside_down(self, *words: str) -> tuple[Said, Said]:
        """Run a command of ours whose guest says "waiting", then `vm down --all`; return what each of them said.

        They have process numbers of their own: machines of somebody else are not in question.
        """
        script = """
"$0" "$@" >run.out 2>run.err & run=$!
until grep -q waiting run.out; do kill -0 $run || exit 1; sleep 0.1; done
$DOWN vm down --all >down.out 2>down.err; echo $? >down.code
wait $run; echo $? >run.code
"""
        # Vagrant's machines are those of the checkout: here, of a directory that a test fills.
        main = self.directory / "down.py"
        main.write_text(_DOWN.format(root=str(ROOT)))
        argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        subprocess.run(
            [*argv, *module_argv("lab.cli.main", *words)],
            cwd=self.directory,
            env=self.environment | {"DOWN": f"{sys.executable} {main}"},
            timeout=120,
            check=True,
        )
        return self._said("run"), self._said("down")

    def _said(self, name: str) -> Said:
        out, errors, code = ((self.directory / f"{name}.{kind}").read_text() for kind in ("out", "err", "code"))
        return Said(out, errors, int(code))

    def left(self) -> list[str]:
        """Return what is left of the machines: scratch directories, and processes."""
        listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, timeout=60, check=True).stdout
        processes = [line for line in listed.splitlines() if str(self.directory / "bin") in line]
        return processes + os.listdir(self.directory / "tmp")


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    out: str
    errors: str
    code: int


class Call:
    """A command that runs; a context manager that kills it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.out, self.errors = "", ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for(self, line: str) -> None:
        """Read its output until it has printed a line."""
        assert self.process.stdout is not None
        while (read := self.process.stdout.readline()) != f"{line}\n":
            self.out += read
            assert read, self.process.communicate(timeout=60)
        self.out += read

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        out, self.errors = self.process.communicate(timeout=120)
        self.out += out
        return self.process.returncode

    @property
    def code(self) -> int:
        return self.process.returncode

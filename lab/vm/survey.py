"""What works on a kernel: a few commands in a virtual machine, and what each of them came to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bpf import LIBRARY
from datapath.base.statefile import parse_json, typed
from datapath.errors import ReloadlabError
from lab.system.launch import module_argv
from lab.system.pace import calibrate
from lab.vm.kernels import Kernel, sort_key
from lab.vm.session import GUEST_OUTPUT, TakenDown, run_in

FILE = "survey.json"
SOURCES = ("bpf_lxc.c", "bpf_host.c", "bpf_overlay.c", "bpf_xdp.c")
MODES = {
    "plain": (),
    "endpoint-routes": ("--endpoint-routes",),
    "tunnel": ("--tunnel",),
    "xdp": ("--devices", "eth0", "--xdp", "native"),
    "tcx": ("--attach", "tcx"),
    "netkit": ("--datapath-mode", "netkit"),
    "netkit-l2": ("--datapath-mode", "netkit-l2"),
}
"""Ways in which a node can be up: the options of `up`."""

NEEDS = {"tcx": "tcx", "netkit": "netkit", "netkit-l2": "netkit"}
"""The doctor's name of what not every kernel has, by mode: a kernel without it is not tried in that mode."""

_LAB = "survey"
_OF_THE_SILENCE = 0.9
"""The part of a machine's allowed silence that one command of the survey may take: it says nothing until its end."""
_COMMAND_LINE = "lab.cli.main"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: what it is called, whether it worked, and why not."""

    name: str
    good: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found on one kernel. `requirements` is the doctor's state of each, by name.

    `programs` is the verifier's count of each program, by object and name: None for one that it refused. `failure` says
    why there is nothing else.
    """

    label: str
    release: str
    checks: tuple[Check, ...] = ()
    requirements: dict[str, str] | None = None
    programs: dict[str, dict[str, int | None]] | None = None
    failure: str = ""

    @property
    def good(self) -> bool:
        """Whether all that was tried worked."""
        return not self.failure and all(check.good for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def kept(text: str) -> list[Survey]:
    """Return the surveys of a JSON list, as `vm survey` writes it; WrongContent if it is none."""
    return list(typed(tuple[Survey, ...], parse_json(text.encode(errors="replace"))))


def merged(known: Sequence[Survey], new: Survey) -> list[Survey]:
    """Return the surveys with a new one, which takes the place of the one of its kernel; the oldest kernel first.

    Of that, the modes stay that the new one has not tried.
    """
    others = [survey for survey in known if survey.label != new.label]
    before = next((survey for survey in known if (survey.label, survey.release) == (new.label, new.release)), new)
    tried = {_mode(check) for check in new.checks}
    stays = [check for check in before.checks if _mode(check) not in {None, *tried}]
    modes = [None, *MODES]
    # sorted() leaves the checks of a mode in their order.
    checks = sorted([*new.checks, *stays], key=lambda check: modes.index(_mode(check)))
    return sorted([*others, replace(new, checks=tuple(checks))], key=lambda survey: sort_key(survey.release))


def _mode(check: Check) -> str | None:
    """Return the mode that a check is of, None if it is of none."""
    _, colon, mode = check.name.partition(": ")
    return mode if colon and mode in MODES else None


def survey(kernel: Kernel, modes: Sequence[str], *, cpus: int, silence: float, say: Callable[[str], None]) -> Survey:
    """Find out what works on a kernel, with a node in each of `modes`; `say` gets a line for each thing tried.

    TakenDown if the machine's end was wanted.
    """
    found: dict[str, Any] = {}

    def keep(left: Path) -> None:
        # A machine that hangs has written what it knew until then.
        with suppress(FileNotFoundError):
            found.update(json.loads((left / FILE).read_text()))

    failure = ""
    try:
        argv = module_argv("lab.vm.survey", f"{GUEST_OUTPUT}/{FILE}", f"{silence * _OF_THE_SILENCE:g}", *modes)
        ended = run_in(kernel, argv, cpus=cpus, silence=silence, say=say, keep=keep)
        failure = f"the survey ended with exit code {ended.exit_code}" if ended.exit_code else ""
    except TakenDown:
        raise
    except ReloadlabError as error:
        failure = str(error)
    checks = tuple(Check(**check) for check in found.pop("checks", ()))
    return Survey(kernel.label, kernel.release, checks, failure=failure, **found)


class _Guest:
    """The guest's side: tries one thing after the other, and keeps the file of what it knows up to date.

    A command that has not ended after `seconds` is given up.
    """

    def __init__(self, output: Path, seconds: float) -> None:
        self._output = output
        self._seconds = seconds
        self._found: dict[str, Any] = {"checks": [], "requirements": {}, "programs": {}}

    def run(self, modes: Sequence[str]) -> None:
        # For all commands below.
        calibrate()
        doctor = self._try("doctor", "doctor", "--json")
        self._found["requirements"] = {row["name"]: row["state"] for row in doctor.get("requirements", ())}
        for source in SOURCES:
            verified = self._try(f"verify {source}", "verify", str(LIBRARY / source), "--loads", "1", "--json")
            self._found["programs"][source] = {
                row["name"]: row["verified_instructions"] if row["verdict"] == "accepted" else None
                for row in verified.get("programs", ())
            }
            self._write()
        for mode in modes:
            needed = NEEDS.get(mode)
            if needed is None or self._found["requirements"].get(needed) == "ok":
                self._node(mode)
            else:
                print(f"skip up: {mode}: this kernel has no {needed}", flush=True)

    def _node(self, mode: str) -> None:
        """Bring a node up, let one pod reach the other before and after a reload, and take it down."""
        up = self._try(f"up: {mode}", "up", _LAB, *MODES[mode], "--json")
        if up:
            ping = ("exec", f"{_LAB}/pod-1", "--", "ping", "-c", "2", "-W", "10", up[0]["pods"][1]["ipv4"])
            self._try(f"ping: {mode}", *ping, parse=False)
            self._try(f"reload: {mode}", "reload", _LAB, "--json")
            self._try(f"ping after a reload: {mode}", *ping, parse=False)
        begin, down = time.monotonic(), self._call("down", _LAB)
        # What could not come up may be gone already; what was up must go, which is worth a line only if it does not.
        if up and down[0] != 0:
            self._note(f"down: {mode}", begin, *down)

    def _try(self, name: str, *words: str, parse: bool = True) -> Any:
        begin = time.monotonic()
        code, said, complaint = self._call(*words)
        self._note(name, begin, code, said, complaint)
        return json.loads(said) if parse and said.lstrip()[:1] in ("{", "[") else {}

    def _note(self, name: str, begin: float, code: int, said: str, complaint: str) -> None:
        """Keep and print what a command that began then came to."""
        message = "" if code == 0 else (complaint.strip().splitlines() or said.strip().splitlines() or [""])[-1]
        self._found["checks"].append(asdict(Check(name, code == 0, message)))
        self._write()
        print(f"{'ok  ' if code == 0 else 'FAIL'} {name} ({time.monotonic() - begin:.0f} s) {message}", flush=True)

    def _call(self, *words: str) -> tuple[int, str, str]:
        argv = module_argv(_COMMAND_LINE, *words)
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=self._seconds, check=False)
        except subprocess.TimeoutExpired:
            return 1, "", f"no end after {self._seconds:g} s"
        return done.returncode, done.stdout, done.stderr

    def _write(self) -> None:
        # Whole or not at all: the machine may stop at any moment.
        unfinished = self._output.with_suffix(".new")
        unfinished.write_text(json.dumps(self._found))
        unfinished.replace(self._output)


if __name__ == "__main__":
    _Guest(Path(sys.argv[1]), float(sys.argv[2])).run(sys.argv[3:])

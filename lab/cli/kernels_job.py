"""`reloadlab run --kernel`: the same command in a virtual machine for each kernel, and one result of all."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datapath.base.statefile import WrongContent, parse_json
from datapath.errors import ReloadlabError
from lab.cli.ci import CiFiles
from lab.cli.job import REPORT_HTML, TRACE_JSON, check
from lab.cli.report import RUN_JSON, print_reasons
from lab.cli.tables import add_row, make_table, print_table
from lab.cli.targets import BadOption, make_console, told, warned
from lab.cli.vm_options import add_machine_options, found, machine_of, printer
from lab.doctor.doctor import require
from lab.report.documents import to_document
from lab.scenario.records import ERROR, FAILED, NOT_RUN, PASSED, RUNNING, SKIPPED, Record, short_name
from lab.system.launch import module_argv
from lab.system.output import OutputDirectory
from lab.vm.kernels import Kernel
from lab.vm.machine import MachineFailed, without_kvm
from lab.vm.session import FULL, GUEST_OUTPUT, TakenDown, check_bootable, run_in

KERNELS_JSON = "kernels.json"
FORMAT = 1
"""Version of kernels.json; see docs/kernels.md."""

_JUNIT, _SUMMARY = "junit.xml", "summary.md"
_FILES = {"--pcap": "pcap", "--junitxml": _JUNIT, "--summary": _SUMMARY}
"""Options that name what else is written, and its name beside run.json of each kernel."""

_NEVER_RAN = 1
_UNFINISHED = "it has not come to its end: the run was killed, or goes on"


@dataclass(frozen=True, slots=True)
class KernelResult:
    """What became of the command on one kernel.

    `exit_code` is the command's, `failure` says why there is none of it; times are in seconds. `document` is run.json,
    None if the command wrote none.
    """

    kernel: Kernel
    exit_code: int
    failure: str
    boot_seconds: float
    seconds: float
    document: dict[str, Any] | None

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcome of each scenario, by name."""
        return {record.name: record.outcome for record in self.records}

    @property
    def records(self) -> list[Record]:
        """What run.json says of each scenario, as far as a table and the reasons need it."""
        rows = (self.document or {}).get("scenarios", ())
        return [Record(row["name"], row["outcome"], message=row.get("message", "")) for row in rows]

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel.label,
            "release": self.kernel.release,
            "exit_code": self.exit_code,
            "failure": self.failure,
            "boot_seconds": self.boot_seconds,
            "seconds": round(self.seconds, 1),
            "run": None if self.document is None else f"{self.kernel.label}/{RUN_JSON}",
        }


def do_on_kernels(args: argparse.Namespace) -> int:
    """Run the command on each kernel, print and write the result of all, and return the worst exit code."""
    if args.keep:
        raise BadOption("--keep has no use with --kernel, whose machines end with their run")
    check(args)
    require("root")
    kernels = found(args.kernels)
    for kernel in kernels:
        # What one of them lacks is told before any of them boots.
        check_bootable(kernel)
    cpus, silence = machine_of(args)
    results: list[KernelResult] = []
    with OutputDirectory(args.out) as output:
        output.remove(REPORT_HTML)
        for kernel in kernels:
            cleared(args.out / kernel.label)

        def note(*unfinished: KernelResult, complete: bool = False) -> None:
            text = document([*results, *unfinished], complete=complete)
            output.write(KERNELS_JSON, json.dumps(text, indent=1))

        try:
            for kernel in kernels:
                # Also that of the run before would tell of kernels that this one has not come to.
                note(KernelResult(kernel, _NEVER_RAN, _UNFINISHED, 0.0, 0.0, None))
                _run(kernel, args, results, cpus=cpus, silence=silence)
            note(complete=True)
            _write_page(output, args.out, results)
        except (KeyboardInterrupt, TakenDown, OSError) as ended:
            with warned():
                note()
            if not args.json:
                print_results(results)
            if not isinstance(ended, OSError):
                _write_page(output, args.out, results)
            raise
    if args.json:
        print(json.dumps(document(results, complete=True), indent=1))
    else:
        print_results(results)
    return worst(results)


def command(args: argparse.Namespace) -> list[str]:
    """Return the command for the guest: as it was given, but for what concerns this machine."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--kernel")
    own.add_argument("--out")
    for option in _FILES:
        own.add_argument(option)
    own.add_argument("--json", action="store_true")
    add_machine_options(own, prefix="kernel-")
    _, words = own.parse_known_args(args.given)
    words += ["--out", GUEST_OUTPUT]
    for option, name in _FILES.items():
        if getattr(args, option.removeprefix("--")) is not None:
            words += [option, f"{GUEST_OUTPUT}/{name}"]
    return [*module_argv("lab.cli.main"), *words, *(["--", *args.handed_on] if args.handed_on else [])]


def _run(kernel: Kernel, args: argparse.Namespace, results: list[KernelResult], *, cpus: int, silence: float) -> None:
    """Add what became of the command on one kernel, whatever ends it."""
    say = printer(kernel.label, stderr=args.json)
    say(f"booting {kernel.release}")
    place = args.out / kernel.label
    before = cleared(place)
    code, failure, boot, seconds = _NEVER_RAN, "interrupted", 0.0, 0.0
    lost: list[str] = []
    try:
        ended = run_in(
            kernel,
            command(args),
            cpus=cpus,
            silence=silence,
            say=say,
            before={} if before is None else {RUN_JSON: before},
            keep=lambda left: lost.extend(keep(left, place)),
        )
        code, boot, seconds, failure = ended.exit_code, ended.boot_seconds, ended.seconds, ""
        if lost:
            code, failure = max(code, _NEVER_RAN), lost[0]
    except TakenDown:
        failure = "reloadlab vm down ended it"
        raise
    except ReloadlabError as error:
        failure, line = str(error), f"kernel {kernel.label}: {error}"
        if isinstance(error, MachineFailed):
            failure, line = error.reason, str(error)
        print(f"reloadlab: {line}", file=sys.stderr)
        tell_failure(error, place, junit=args.junitxml is not None, summary=args.summary is not None)
    except OSError as error:
        failure = told(error)
        raise
    finally:
        for line in lost:
            print(f"reloadlab: warning: {line}", file=sys.stderr)
        results.append(KernelResult(kernel, code, failure, boot, seconds, document_of(place, before)))
        if failure:
            # What the command would have printed at its end.
            print_reasons(make_console(stderr=args.json), results[-1].records)


def _write_page(output: OutputDirectory, out: Path, results: Sequence[KernelResult]) -> None:
    """Write one page of all kernels; what a kernel's own run.json lacks for it is told, and changes nothing else."""
    # numpy and scipy are long in coming, and nothing before needs them.
    from lab.report.page import PageMaker

    with warned():
        documents = [
            to_document(out / result.kernel.label / RUN_JSON, result.document) for result in results if result.document
        ]
        if documents:
            output.write(REPORT_HTML, PageMaker(documents).make())


def cleared(place: Path) -> str | None:
    """Remove the files of the run before from a directory, and return its run.json, which stays: --lf reads it.

    If the machine does not boot, nothing else would tell them from those of this run.
    """
    with OutputDirectory(place) as there:
        for name in (_JUNIT, _SUMMARY, REPORT_HTML, TRACE_JSON):
            there.remove(name)
        return there.read(RUN_JSON)


def tell_failure(error: ReloadlabError, place: Path, *, junit: bool, summary: bool) -> None:
    """Write the files for CI servers that a machine should have left and has not: the error is all that they tell."""
    wanted = {_JUNIT: junit, _SUMMARY: summary}
    missing = [place / name if asked and not (place / name).exists() else None for name, asked in wanted.items()]
    with suppress(type(error)), CiFiles(*missing):
        raise error


def keep(left: Path, place: Path) -> list[str]:
    """Copy the files that a command left; links and what else there may be are left out.

    Return a line for each file and directory for which there is no room: the others are no less worth.
    """
    lost: list[str] = []
    for directory, _, names in os.walk(left):
        there = place / Path(directory).relative_to(left)
        with _noted(there, lost), OutputDirectory(there) as output:
            for path in (Path(directory) / name for name in names):
                if path.is_file() and not path.is_symlink():
                    with _noted(there / path.name, lost):
                        output.write(path.name, path.read_bytes())
    return lost


@contextmanager
def _noted(path: Path, lost: list[str]) -> Iterator[None]:
    """Add a line to `lost` if there is no room for what is written inside."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        lost.append(f"{path} is lost: {error.strerror}")


def document_of(place: Path, before: str | None) -> dict[str, Any] | None:
    """Return the run.json that a command left in a directory; None if it is the one that was there `before`.

    A machine that does not boot, or a command that ends early, leaves that of an earlier run as it was.
    """
    with OutputDirectory(place) as there:
        text = there.read(RUN_JSON)
    if text is None or text == before:
        return None
    try:
        found = parse_json(text.encode(errors="replace"))
    except WrongContent as error:
        print(f"reloadlab: warning: {place / RUN_JSON} is {error}", file=sys.stderr)
        return None
    return found if isinstance(found, dict) else None


def document(results: Sequence[KernelResult], *, complete: bool) -> dict[str, Any]:
    """Return kernels.json."""
    return {
        "format": FORMAT,
        "complete": complete,
        "emulated": bool(without_kvm()),
        "kernels": [result.to_json() for result in results],
        "scenarios": [{"name": name, "outcomes": outcomes} for name, outcomes in matrix(results)],
    }


def matrix(results: Sequence[KernelResult]) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield each scenario with its outcome on each kernel; None where it was not even collected."""
    names = dict.fromkeys(name for result in results for name in result.outcomes)
    for name in names:
        yield name, {result.kernel.label: result.outcomes.get(name) for result in results}


def worst(results: Sequence[KernelResult]) -> int:
    """Return the worst exit code: a failure (1) is none of a wrong call (2), and all are worse than 0."""
    return max((result.exit_code for result in results), default=0)


def print_results(results: Sequence[KernelResult]) -> None:
    """Print a column per kernel and a line per scenario, then a line per kernel."""
    table = make_table("scenario", *(result.kernel.label for result in results))
    for name, outcomes in matrix(results):
        add_row(table, short_name(name), *(outcome or "" for outcome in outcomes.values()))
    print()
    print_table(table)
    print()
    for result in results:
        print(f"{result.kernel.label} ({result.kernel.release}): {_verdict(result)}")


def _verdict(result: KernelResult) -> str:
    counts = Counter(result.outcomes.values())
    words = [
        f"{counts[outcome]} {outcome}"
        for outcome in (PASSED, FAILED, ERROR, SKIPPED, RUNNING, NOT_RUN)
        if counts[outcome]
    ]
    if result.failure:
        return ", ".join([result.failure, *words])
    ran = f"exit code {result.exit_code} after {result.seconds:.0f} s, up in {result.boot_seconds:.1f} s"
    return ", ".join([*words, ran])

"""What the verifier says to every program of an object, one by one: a refused one does not hide the others."""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from datapath.errors import BpfError, VerifierError
from datapath.kernel.bpf import LOG_LEVEL1, LOG_LEVEL2
from datapath.kernel.map import Map
from datapath.load.maps import load_maps
from datapath.load.programs import Loading, Program, data_words
from datapath.load.types import TypeStore
from datapath.object.reachability import ways
from datapath.object.reader import ObjectImage
from datapath.object.spec import CollectionSpec, ProgramSpec

_PROCESSED = re.compile(r"^processed (\d+) insns", re.MULTILINE)
_TIME = re.compile(r"^verification time (\d+) usec", re.MULTILINE)
_TOTAL_STATES = re.compile(r"^processed .* total_states (\d+)", re.MULTILINE)
_PEAK_STATES = re.compile(r"^processed .* peak_states (\d+)", re.MULTILINE)
_STACK = re.compile(r"^stack depth ([\d+]+)", re.MULTILINE)


class Verdict(enum.StrEnum):
    """What became of a program. Only the verifier accepts or refuses; what it never saw is not supported."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True, slots=True)
class ProgramReport:
    """The verifier's statistics of one program, its refusal, or why it was not asked.

    `verified_instructions` counts an instruction once per path on which it was looked at; `total_states` are those that
    the verifier has kept to compare others with, `peak_states` those at a time. `time_us` is the verifier's own time in
    microseconds, the least of all loads; `stack` and `jited_size` are bytes. None where the kernel did not say.
    `reason` says why the verifier was not asked, and is empty where it was. `reached_from` are the programs and arrays
    from which packets come to the program (datapath/object/reachability.py); a reload leaves it out without any.
    """

    name: str
    section: str
    instructions: int
    verified_instructions: int | None = None
    total_states: int | None = None
    peak_states: int | None = None
    time_us: int | None = None
    stack: int | None = None
    jited_size: int | None = None
    error: VerifierError | None = None
    reason: str = ""
    reached_from: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        if self.error is not None:
            return Verdict.REFUSED
        return Verdict.NOT_SUPPORTED if self.reason else Verdict.ACCEPTED


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """The reports of an object's programs; `notes` say what was left out on the way, one line each."""

    programs: tuple[ProgramReport, ...]
    notes: tuple[str, ...] = ()

    def with_verdict(self, verdict: Verdict) -> list[ProgramReport]:
        """Return the reports of the programs with one verdict."""
        return [report for report in self.programs if report.verdict is verdict]

    @property
    def ok(self) -> bool:
        """Tell whether the verifier accepted something and refused nothing."""
        return bool(self.with_verdict(Verdict.ACCEPTED)) and not self.with_verdict(Verdict.REFUSED)


def verify_object(source: ObjectImage | CollectionSpec, *, loads: int = 1) -> ObjectReport:
    """Load every program of an object so many times, with maps of its own that are never pinned, and report on each.

    Nothing is attached, and nothing is left when it returns. A program that cannot be loaded, or needs a map that
    cannot be created, is not supported: the others are judged all the same. Without the right to load anything the
    first error is raised.
    """
    spec = source.spec if isinstance(source, ObjectImage) else source
    with ExitStack() as stack, TypeStore() as types:
        maps, missing = _create_maps(spec, stack, types)
        words, starts = data_words(spec.data), ways(spec)
        reports = []
        for program in spec.programs.values():
            reason = program.problem or next((missing[name] for name in program.maps if name in missing), "")
            if reason:
                reports.append(_unjudged(program, f"it {reason}"))
                continue
            loading = Loading.make(spec, program, words, maps, types)
            same = [_verify(loading) for _ in range(loads)]
            reports.append(min(same, key=lambda report: report.time_us or 0))
        reports = [replace(report, reached_from=starts[report.name]) for report in reports]
        return ObjectReport(tuple(reports), tuple(_notes(spec, types)))


def _create_maps(spec: CollectionSpec, stack: ExitStack, types: TypeStore) -> tuple[dict[str, Map], dict[str, str]]:
    """Create every map that can be created, empty but for variables; return why the others are missing."""
    maps: dict[str, Map] = {}
    missing: dict[str, str] = {}
    for item in spec.maps.values():
        if item.problem:
            missing[item.name] = f"uses map {item.name}: {item.problem}"
            continue
        alone = replace(spec, maps={item.name: replace(item, contents={})}, programs={}, problems=())
        try:
            created = load_maps(alone, None, types=types)
        except BpfError as error:
            if error.errno == errno.EPERM:
                raise
            missing[item.name] = f"uses map {item.name}, which the kernel does not create: {error}"
            continue
        stack.callback(created.close)
        maps |= created.maps
    return maps, missing


def _notes(spec: CollectionSpec, types: TypeStore) -> Iterator[str]:
    yield from spec.problems
    if alone := [name for name, starts in ways(spec).items() if not starts]:
        yield f"nothing leads to {', '.join(alone)}: a reload leaves out what is not reached"
    refused = types.refusal(spec)
    if refused is not None:
        yield f"the kernel refuses the object's BTF, programs were loaded without: {refused}"
    for program, reason in types.refused_programs.items():
        yield f"program {program} was loaded without func_info and line_info, which the kernel refuses: {reason}"


def _unjudged(program: ProgramSpec, reason: str) -> ProgramReport:
    return ProgramReport(program.name, program.section, program.instructions, reason=reason)


def _verify(loading: Loading) -> ProgramReport:
    # The statistics alone cost nothing. Why a program is refused stands only in the full log, which takes many times as
    # long to write: the first try's numbers are the ones to report.
    program = loading.program
    result, statistics = loading.load_with_log(level=0)
    if result < 0:
        result, log = loading.load_with_log(level=LOG_LEVEL1 | LOG_LEVEL2)
    if result < 0:
        error = loading.refusal(-result, log)
        if isinstance(error, VerifierError):
            return _report(program, statistics, None, None, error)
        if error.errno == errno.EPERM:
            raise error
        return _unjudged(program, str(error))
    with Program(result, program.name) as loaded:
        info = loaded.info()
    return _report(program, statistics, info.verified_insns or None, info.jited_len or None, None)


def _report(
    program: ProgramSpec, log: str, verified: int | None, jited: int | None, error: VerifierError | None
) -> ProgramReport:
    stack = _STACK.search(log)
    return ProgramReport(
        name=program.name,
        section=program.section,
        instructions=program.instructions,
        verified_instructions=verified if verified is not None else _number(_PROCESSED, log),
        total_states=_number(_TOTAL_STATES, log),
        peak_states=_number(_PEAK_STATES, log),
        time_us=_number(_TIME, log),
        # "224", or one number per function where there are several
        stack=sum(int(part) for part in stack[1].split("+") if part) if stack else None,
        jited_size=jited,
        error=error,
    )


def _number(pattern: re.Pattern[str], log: str) -> int | None:
    found = pattern.search(log)
    return int(found[1]) if found else None

"""What the verifier says to every program of an object, one by one: a refused one does not hide the others."""

from __future__ import annotations

import re
from dataclasses import dataclass

from datapath.errors import VerifierError
from datapath.kernel.bpf import LOG_LEVEL1, LOG_LEVEL2
from datapath.load.maps import load_maps
from datapath.load.programs import Program, bind, data_words, load_with_log, refusal
from datapath.object.reader import ObjectImage
from datapath.object.spec import CollectionSpec, ProgramSpec

_PROCESSED = re.compile(r"^processed (\d+) insns", re.MULTILINE)
_TIME = re.compile(r"^verification time (\d+) usec", re.MULTILINE)
_STACK = re.compile(r"^stack depth ([\d+]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProgramReport:
    """The verifier's statistics of one program, or its refusal.

    `verified_instructions` counts an instruction once per path on which it was looked at; `time_us` is the verifier's
    own time in microseconds, the least of all loads; `stack` and `jited_size` are bytes. None where the kernel did not
    say.
    """

    name: str
    section: str
    instructions: int
    verified_instructions: int | None
    time_us: int | None
    stack: int | None
    jited_size: int | None
    error: VerifierError | None


def verify_object(source: ObjectImage | CollectionSpec, *, loads: int = 1) -> list[ProgramReport]:
    """Load every program of an object so many times, with maps of its own that are never pinned, and report on each.

    Nothing is attached, and nothing is left when it returns. An error other than the verifier's refusal is raised.
    """
    spec = source.spec if isinstance(source, ObjectImage) else source
    maps = load_maps(spec, None)
    try:
        words = data_words(spec.data)
        reports = [
            [_verify(p, bind(p, words, maps.maps), spec.license) for p in spec.programs.values()] for _ in range(loads)
        ]
        return [min(same, key=lambda report: report.time_us or 0) for same in zip(*reports, strict=True)]
    finally:
        maps.close()


def _verify(program: ProgramSpec, insns: bytearray, license_: str) -> ProgramReport:
    # The statistics alone cost nothing. Why a program is refused stands only in the full log, which takes many times as
    # long to write: the first try's numbers are the ones to report.
    result, statistics = load_with_log(program, insns, license_, level=0)
    if result < 0:
        result, log = load_with_log(program, insns, license_, level=LOG_LEVEL1 | LOG_LEVEL2)
    if result < 0:
        error = refusal(program, -result, log)
        if not isinstance(error, VerifierError):
            raise error
        return _report(program, statistics, None, None, error)
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
        time_us=_number(_TIME, log),
        # "224", or one number per function where there are several
        stack=sum(int(part) for part in stack[1].split("+") if part) if stack else None,
        jited_size=jited,
        error=error,
    )


def _number(pattern: re.Pattern[str], log: str) -> int | None:
    found = pattern.search(log)
    return int(found[1]) if found else None

"""What was compared, where and how, in lines for whoever reads a comparison without its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lab.results.result import Result
from lab.results.subject import COMMIT, OWN_COMMIT, short
from lab.system.words import plural

_SHOWN = ("object", "library", COMMIT, "defines", "loader", "attach", "sleep")
"""Words of a subject that are told, in their order; where the sources have no commit their hash is as well."""

_HASHES = {"library": "library sha256", "object": "object sha256"}


def about(compared: Sequence[tuple[str, Result, str]]) -> tuple[str, ...]:
    """Return what is compared, the machine, and how it was measured; each is what it is called, a result, its side."""
    lines = [f"{name}: {_subject(result, side)}" for name, result, side in compared]
    results = [result for _, result, _ in compared]
    machine = results[-1].machine
    cpu = f"{machine.cpu_model or machine.architecture}, {machine.cpus} CPUs"
    lines.append(", ".join(filter(None, (cpu, f"kernel {machine.kernel}", machine.clang and f"clang {machine.clang}"))))
    return tuple(lines + list(dict.fromkeys("; ".join(_course(result)) for result in results)))


def _subject(result: Result, side: str) -> str:
    words = result.subjects[side]
    found = [f"{name} {short(words[name]) if name == COMMIT else words[name]}" for name in _SHOWN if name in words]
    if COMMIT not in words:
        found += [f"{name} {words[name][:12]}" for of, name in _HASHES.items() if of in words and name in words]
    ours = words.get(OWN_COMMIT, "")
    if ours and ours != words.get(COMMIT):
        found.append(f"{OWN_COMMIT} {short(ours)}")
    called = result.notes.get(side)
    return ", ".join(found or ["reloadlab"]) + (f" ({called})" if called else "")


def _course(result: Result) -> Iterator[str]:
    course, others = result.course, result.load.others
    rounds = plural(course.rounds, "round")
    yield rounds + (f" after {course.warm_up} of warm-up" if course.warm_up else "")
    if course.seed is not None:
        yield f"seed {course.seed}"
    if others is not None:
        yield f"other processes had {others:.0%} of the CPUs"
    yield f"reloadlab {result.version}, {result.started}"

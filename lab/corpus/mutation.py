"""Mutants: faults of the C programs, each one small change of the kind that people make."""

from __future__ import annotations

from lab.corpus.fault import Fault, Patch


def mutant(name: str, what: str, file: str, old: str, new: str, *only: str, equivalent: str = "") -> Fault:
    """Return the fault "mutant/NAME": `old`, which stands once in `file` (below bpf/), became `new`.

    `only` are parts of the names of scenarios that are tried first, `equivalent` why no packet meets a difference.
    """
    return Fault(f"mutant/{name}", "c", what, patches=(Patch(file, old, new),), only=only, equivalent=equivalent)

"""What programs cost that no chance moves: the work of the verifier, sizes of object and code, memory of the maps."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.inventory import program_by_id
from datapath.kernel.uapi import ProgInfo
from datapath.load.verify import verify_object
from datapath.reload.outcome import Outcome
from lab.bench.planned import PlannedObject
from lab.results.result import Series, exact

_MEMLOCK = re.compile(r"^memlock:\s*(\d+)$", re.MULTILINE)


def footprint(outcome: Outcome, *, side: str = "") -> list[Series]:
    """Return the exact series of those programs of a reload that are still loaded, and of all maps that they use.

    A program that neither a hook nor a slot holds is gone with the reload. Verified instructions are left out before
    Linux 5.16, which does not count them.
    """
    found: list[Series] = []
    jited, maps = 0, set[int]()
    programs = {ident: name for loaded in outcome.loaded for name, ident in loaded.programs.items()}
    # Of a loader that is not ours, only what is in slots counts as loaded.
    programs = {each.program_id: each.program for each in outcome.attached} | programs
    for ident, name in programs.items():
        info = _info(ident)
        if info is None:
            continue
        jited += info.jited_len
        maps.update(info.map_ids)
        if info.verified_insns:
            found.append(exact(f"verified instructions: {name}", "instructions", info.verified_insns, side=side))
    if maps:
        found.append(exact("code of the programs, compiled by the kernel", "bytes", jited, side=side))
        found.append(exact("memory of the maps", "bytes", sum(map(_memory, maps)), side=side))
    return found


def before_load(objects: Sequence[PlannedObject], *, side: str = "") -> list[Series]:
    """Return the exact series of what a reload loads: the size of the object, the states that the verifier keeps.

    All objects of a reload are of one template. The programs are verified once more, with maps of their own.
    """
    found = [exact("object: size", "bytes", len(objects[0].template.image.data), side=side)]
    for item in objects:
        for report in verify_object(item.spec(all_programs=False)).programs:
            states = {"verifier states": report.total_states, "verifier states, peak": report.peak_states}
            for what, number in states.items():
                if number is not None:
                    found.append(exact(f"{what}: {report.name}", "states", number, side=side))
    return found


def _info(ident: int) -> ProgInfo | None:
    """Describe a program; None if it is gone."""
    try:
        with program_by_id(ident) as fd:
            return bpf.prog_info(fd)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None


def _memory(ident: int) -> int:
    """Return the bytes that the kernel accounts for a map."""
    fd = bpf.map_fd_by_id(ident)
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    stated = _MEMLOCK.search(text)
    return int(stated[1]) if stated else 0

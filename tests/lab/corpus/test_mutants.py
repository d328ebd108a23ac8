"""The mutants of the C: each fits today's sources; what is tried here compiles and is accepted by the verifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bpf import LIBRARY, is_ours
from lab.corpus.mutants import MUTANTS
from tests import exhaustive
from tests.bpf.loaded import Build, loaded

TRACKED = (("ENABLE_IPV4_FRAGMENTS", "1"), ("ENABLE_IPV6_FRAGMENTS", "1"))
FIREWALL = (("ENABLE_HOST_FIREWALL", "1"),)
BUILDS = (
    Build("bpf_lxc.c", tunnel=True, defines=(*TRACKED, *FIREWALL)),
    Build("bpf_lxc.c", endpoint_routes=True, defines=TRACKED),
    Build("bpf_host.c", tunnel=True, defines=(*TRACKED, *FIREWALL)),
    Build("bpf_host.c"),
    Build("bpf_overlay.c"),
    Build("bpf_xdp.c"),
)
"""What has every line of the sources, taken together."""
FILES = {fault.patches[0].file: fault for fault in MUTANTS}
"""A mutant of each file, the last one."""
SAMPLE = tuple(FILES) if exhaustive.EXHAUSTIVE else ("bpf_overlay.c", "lib/conntrack.h")
"""Files whose mutant is loaded here: one of a kind of program, one that all of them include.

Not the mutants of the other files, unless all cases are wanted; `make corpus` loads every mutant, which takes long.
"""


def test_mutants_spread_over_the_sources() -> None:
    assert len(MUTANTS) >= 40
    assert {"bpf_lxc.c", "bpf_host.c", "bpf_overlay.c", "lib/conntrack.h", "lib/policy.h"} <= FILES.keys()


def test_every_mutant_fits_and_differs(tmp_path: Path) -> None:
    """BadFault unless its old text stands in its file exactly once."""
    for fault in MUTANTS:
        (patch,) = fault.patches
        library = fault.patched(tmp_path / fault.name.replace("/", "-"))
        assert is_ours(library)
        changed = {
            p for p in library.rglob("*.[ch]") if p.read_bytes() != (LIBRARY / p.relative_to(library)).read_bytes()
        }
        assert changed == {library / patch.file}


@pytest.mark.privileged
@pytest.mark.parametrize("file", SAMPLE)
def test_mutant_is_compiled_and_accepted(file: str, tmp_path: Path) -> None:
    """With warnings as errors: it would pass a reviewer's build."""
    library = FILES[file].patched(tmp_path)
    for build in BUILDS:
        if file.startswith("lib/") or file == build.source:
            with loaded(replace(build, library=library)) as datapath:
                assert datapath.collection.programs

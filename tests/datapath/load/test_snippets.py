"""Objects of every kind in the kernel: loaded, run and verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.base.bpftypes import ProgType
from datapath.kernel import bpf
from datapath.load.collection import Collection
from datapath.load.verify import Verdict, verify_object
from datapath.object.reader import read_object
from tests.datapath.snippets import HELPERS, SNIPPETS

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

PACKET = bytes(64)


@pytest.mark.parametrize("name", SNIPPETS)
def test_objects_of_other_projects_are_loaded_and_run(name: str, compile_c: Compile, bpffs: Path) -> None:
    snippet = SNIPPETS[name]
    spec = read_object(compile_c(HELPERS + snippet.source)).spec
    with Collection.load(spec, pin_dir=bpffs) as loaded:
        fd = loaded.programs["tc_main"].fd
        assert tuple(bpf.prog_test_run(fd, PACKET).retval for _ in snippet.returns) == snippet.returns


@pytest.mark.parametrize("section", ["xdp", "xdp_pass", "xdp/name", "xdp.frags", "xdp/devmap", "xdp.frags/cpumap"])
def test_xdp_programs_are_loaded_with_the_options_of_their_section(section: str, compile_c: Compile) -> None:
    spec = read_object(compile_c(f'__section("{section}") int tc_main(void *context) {{ return 2; }}')).spec
    with Collection.load(spec, pin_dir=None) as loaded:
        assert loaded.programs["tc_main"].info().type == ProgType.XDP


@pytest.mark.parametrize("name", SNIPPETS)
def test_objects_of_other_projects_are_verified(name: str, compile_c: Compile) -> None:
    report = verify_object(read_object(compile_c(HELPERS + SNIPPETS[name].source)))
    assert [(r.name, r.verdict, r.reason) for r in report.programs] == [("tc_main", Verdict.ACCEPTED, "")]
    assert report.notes == ()
    assert report.ok

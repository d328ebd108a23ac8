"""tcx.py: what the tcx hooks of an interface run, and whether a kernel has such hooks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.endpoint import Attachment
from datapath.errors import BpfError
from datapath.kernel import links, tcx
from datapath.kernel.hooks import Direction
from datapath.kernel.links import Entry
from datapath.kernel.netns import enter
from datapath.kernel.tcx import TcxMissing, TcxProgram
from tests.datapath.support import NEEDS_TCX, TCX_NEXT, program, program_id
from tests.lab.wires import ip, namespace

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
AUTO, TC, TCX = Attachment.AUTO, Attachment.TC, Attachment.TCX

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]


@pytest.fixture
def netns() -> Iterator[Path]:
    """Make a namespace with the interface eth0, which has index 2."""
    with namespace() as path:
        ip(path, "link", "add", "eth0", "index", "2", "type", "bridge")
        yield Path(path)


def attach(stack: ExitStack, netns: Path, name: str, direction: Direction = INGRESS) -> TcxProgram:
    """Attach a program to eth0 until the test ends."""
    fd = stack.enter_context(program(TCX_NEXT, name=name))
    with enter(netns):
        link = links.create(fd, 2, tcx.attach_type(2, direction))
    stack.callback(os.close, link)
    return TcxProgram(Entry(program_id(fd), links.info(link).id), name[:15])


@NEEDS_TCX
def test_a_hook_lists_programs_in_the_order_in_which_they_run(netns: Path) -> None:
    """The kernel keeps 15 characters of a name; by its beginning a program is ours."""
    with ExitStack() as stack:
        first = attach(stack, netns, "acme")
        second = attach(stack, netns, "cil_from_container")
        assert tcx.programs(netns, 2, INGRESS) == (first, second)
    assert (second.name, [found.is_ours for found in (first, second)]) == ("cil_from_contai", [False, True])
    assert tcx.programs(netns, 2, INGRESS) == ()


@NEEDS_TCX
def test_each_direction_has_a_hook_of_its_own(netns: Path) -> None:
    with ExitStack() as stack:
        made = {direction: attach(stack, netns, f"cil_{direction}", direction) for direction in Direction}
        assert {direction: tcx.programs(netns, 2, direction) for direction in Direction} == {
            direction: (found,) for direction, found in made.items()
        }


@NEEDS_TCX
def test_an_interface_that_is_gone_runs_nothing(netns: Path) -> None:
    """Who expects it there is told."""
    with ExitStack() as stack:
        made = attach(stack, netns, "cil_from_container")
        assert tcx.programs_if_there(netns, 2, INGRESS) == (made,)
        ip(str(netns), "link", "delete", "eth0")
        assert tcx.programs_if_there(netns, 2, INGRESS) == ()
        with pytest.raises(BpfError) as caught:
            tcx.programs(netns, 2, INGRESS)
    assert caught.value.errno == errno.ENODEV


@NEEDS_TCX
def test_a_program_of_others_before_ours_is_told_with_its_number(netns: Path) -> None:
    with ExitStack() as stack:
        named, nameless = attach(stack, netns, "acme"), attach(stack, netns, "")
        ids = [found.entry.program_id for found in (named, nameless)]
        told = [tcx.runs_before("eth0", EGRESS, found, "cil_x") for found in tcx.programs(netns, 2, INGRESS)]
    assert told == [
        f"eth0 egress: tcx program {name} (id {ident}) runs before cil_x, which sees only what that passes on"
        for name, ident in zip(("acme", "without a name"), ids, strict=True)
    ]


@NEEDS_TCX
def test_auto_is_tcx_where_the_kernel_has_it() -> None:
    assert [tcx.chosen(wanted) for wanted in (AUTO, TC, TCX)] == [TCX, TC, TCX]


def test_tcx_is_refused_by_a_kernel_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a kernel says EINVAL; auto is tc there."""

    def refuse(ifindex: int, attach_type: links.AttachType) -> tuple[Entry, ...]:
        raise BpfError("BPF_PROG_QUERY", errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(links, "query", refuse)
    tcx.is_supported.cache_clear()
    try:
        assert [tcx.chosen(wanted) for wanted in (AUTO, TC)] == [TC, TC]
        with pytest.raises(TcxMissing, match="the kernel has no tcx"):
            tcx.chosen(TCX)
        assert tcx.programs(Path("/nonexistent"), 2, INGRESS) == ()
    finally:
        tcx.is_supported.cache_clear()

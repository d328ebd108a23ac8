"""The classic faults on a node whose programs are attached by tcx: what they do wrong they do to links as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.endpoint import Attachment
from datapath.kernel import tcx
from datapath.kernel.hooks import Direction
from datapath.kernel.tcx import TcxProgram
from lab.corpus.classic import attach_behind, attach_late
from lab.scenario.gate import Gate
from tests.datapath import support
from tests.datapath.support import NEEDS_TCX, Injected, Rig, inject

pytestmark = [pytest.mark.privileged, NEEDS_TCX]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with support.rig(tmp_path, pods=1, changes={"attach": Attachment.TCX}) as made:
        made.reload("pod-1")
        yield made


def at(rig: Rig) -> tuple[TcxProgram, ...]:
    return tcx.programs(rig.config.netns, rig.netlink.ifindex(rig.node.pod("pod-1").ifname), Direction.INGRESS)


def test_a_program_that_is_attached_behind_is_never_met(rig: Rig) -> None:
    (before,) = at(rig)
    seen: list[int] = []
    plan = attach_behind(rig.plan("pod-1"))
    rig.loader.apply(plan, observer=Gate(lambda *_: seen.append(len(at(rig))), after="attach ingress"))
    assert seen == [2]
    assert at(rig)[0] == before


def test_a_hook_that_is_emptied_gets_its_link_anew(rig: Rig) -> None:
    """A link that was not detached for a moment would be the same as before; a failed reload keeps the old program."""
    (before,) = at(rig)
    with pytest.raises(Injected):
        rig.loader.apply(attach_late(rig.plan("pod-1")), observer=Gate(inject, after="attach ingress"))
    (failed,) = at(rig)
    assert failed.entry.program_id == before.entry.program_id
    rig.loader.apply(attach_late(rig.plan("pod-1")))
    (after,) = at(rig)
    assert len({found.entry.link_id for found in (before, failed, after)}) == 3
    assert after.entry.program_id != before.entry.program_id

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from datapath.base.bpftypes import ProgType
from datapath.errors import BpfError
from datapath.kernel import bpf, links
from datapath.kernel.links import AttachType, Entry, LinkType
from datapath.kernel.netns import enter
from tests.datapath.support import until
from tests.lab.wires import ip, namespace

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 2, 4
_RETURN = "<BBhiBBhi"


@dataclass
class Hook:
    """An interface in a namespace that the test's thread is in; `load` loads programs until the end of the test."""

    ifindex: int
    load: Callable[[ProgType], int]
    remove: Callable[[], object]


@pytest.fixture
def hook() -> Iterator[Hook]:
    with ExitStack() as stack:

        def load(kind: ProgType) -> int:
            fd = bpf.prog_load(kind, struct.pack(_RETURN, 0xB7, 0, 0, 2, 0x95, 0, 0, 0), "GPL", name="two")
            assert fd >= 0, os.strerror(-fd)
            stack.callback(os.close, fd)
            return fd

        path = stack.enter_context(namespace())
        ip(path, "link", "add", "eth0", "type", "veth", "peer", "name", "peer")
        stack.enter_context(enter(Path(path)))
        ifindex = int(ip(path, "-oneline", "link", "show", "eth0").partition(":")[0])
        yield Hook(ifindex, load, lambda: ip(path, "link", "delete", "eth0"))


@pytest.fixture
def tcx(hook: Hook) -> Hook:
    try:
        links.query(hook.ifindex, AttachType.TCX_INGRESS)
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("no tcx before Linux 6.6")
    return hook


@pytest.mark.parametrize("attach_type", [AttachType.TCX_INGRESS, AttachType.TCX_EGRESS])
def test_a_tcx_link_is_made_updated_and_detached(tcx: Hook, attach_type: AttachType) -> None:
    first, second = tcx.load(ProgType.SCHED_CLS), tcx.load(ProgType.SCHED_CLS)
    link = links.create(first, tcx.ifindex, attach_type)
    try:
        made = links.info(link)
        assert (made.type, made.ifindex, made.attach_type) == (LinkType.TCX, tcx.ifindex, attach_type)
        assert links.info_by_id(made.id) == made
        assert links.query(tcx.ifindex, attach_type) == (Entry(bpf.prog_id(first), made.id),)
        links.update(link, second, old_program_fd=first)
        assert links.query(tcx.ifindex, attach_type) == (Entry(bpf.prog_id(second), made.id),)
        with pytest.raises(BpfError) as caught:
            links.update(link, second, old_program_fd=first)
        assert caught.value.errno == errno.EPERM
        links.detach(link)
        assert links.query(tcx.ifindex, attach_type) == ()
    finally:
        os.close(link)


def test_a_hook_lists_programs_in_the_order_in_which_they_run(tcx: Hook) -> None:
    programs = [tcx.load(ProgType.SCHED_CLS) for _ in range(3)]
    made = [links.create(program, tcx.ifindex, AttachType.TCX_INGRESS) for program in programs]
    try:
        found = links.query(tcx.ifindex, AttachType.TCX_INGRESS)
        assert found == tuple(
            Entry(bpf.prog_id(p), links.info(link).id) for p, link in zip(programs, made, strict=True)
        )
    finally:
        for link in made:
            os.close(link)
    assert links.query(tcx.ifindex, AttachType.TCX_INGRESS) == (), "a link that nothing holds goes"


def test_a_pin_keeps_a_link_attached(tcx: Hook, bpffs: Path) -> None:
    path, program = bpffs / "link", tcx.load(ProgType.SCHED_CLS)
    with links.pinned(path) as nothing:
        assert nothing is None
    link = links.create(program, tcx.ifindex, AttachType.TCX_INGRESS)
    bpf.obj_pin(link, path)
    os.close(link)
    with links.pinned(path) as again:
        assert again is not None
        assert links.info(again).program_id == bpf.prog_id(program)
    path.unlink()
    until(lambda: links.query(tcx.ifindex, AttachType.TCX_INGRESS) == (), "the link is gone")


def test_a_link_outlives_its_interface_and_takes_no_other_program(tcx: Hook) -> None:
    program = tcx.load(ProgType.SCHED_CLS)
    link = links.create(program, tcx.ifindex, AttachType.TCX_INGRESS)
    try:
        tcx.remove()
        assert links.info(link).ifindex == 0
        with pytest.raises(BpfError) as caught:
            links.update(link, program)
        assert caught.value.errno == errno.ENOLINK
    finally:
        os.close(link)
    with pytest.raises(BpfError) as caught:
        links.query(tcx.ifindex, AttachType.TCX_INGRESS)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("flags", [XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE])
def test_an_xdp_link_is_made_in_the_mode_that_was_asked_for(hook: Hook, flags: int) -> None:
    first, second = hook.load(ProgType.XDP), hook.load(ProgType.XDP)
    link = links.create(first, hook.ifindex, AttachType.XDP, flags=flags)
    try:
        made = links.info(link)
        assert (made.type, made.ifindex, made.attach_type) == (LinkType.XDP, hook.ifindex, None)
        with pytest.raises(BpfError) as caught:
            links.create(second, hook.ifindex, AttachType.XDP, flags=flags)
        assert caught.value.errno == errno.EBUSY
        links.update(link, second)
        assert links.info(link).program_id == bpf.prog_id(second)
    finally:
        os.close(link)

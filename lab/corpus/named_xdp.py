"""Bugs of attaching to XDP: the program of a device that keeps its own is removed, for a moment or for good."""

from __future__ import annotations

import time
from dataclasses import dataclass

from datapath.kernel import links
from datapath.reload.workspace import Workspace
from datapath.reload.xdp import CIL_XDP_ENTRY, AttachXdp
from lab.corpus.fault import Fault
from lab.corpus.steps import GAP, Telling, instead


@dataclass(frozen=True)
class _Detaching(Telling, AttachXdp):
    def _detach(self, work: Workspace) -> None:
        with links.pinned(work.config.device_links(self.target) / CIL_XDP_ENTRY) as fd:
            if fd is not None:
                links.detach(fd)
                self.applied()


@dataclass(frozen=True)
class AttachAnew(_Detaching):
    """Detaches the former program before it attaches the new one."""

    def apply(self, work: Workspace) -> None:
        self._detach(work)
        time.sleep(GAP)
        super().apply(work)


@dataclass(frozen=True)
class AttachAndForget(_Detaching):
    """Takes a native program for one of another mode, as the kernel's number for it is no flag, and detaches it."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        if self.mode != "generic":
            self._detach(work)
            del work.attached[self.key]


FAULTS = (
    Fault(
        "B20-off-before-on",
        "named",
        "detaches the XDP program of a device before it attaches the new one",
        change=instead({AttachXdp: AttachAnew}),
        cites=("cilium issue 10958",),
        only=("test_xdp",),
    ),
    Fault(
        "B20-mode-constants",
        "named",
        "detaches the native XDP program of a device that keeps it: takes the kernel's number of a mode for its flag",
        change=instead({AttachXdp: AttachAndForget}),
        cites=("cilium issue 30132", "cilium issue 30163"),
        only=("test_xdp",),
    ),
)

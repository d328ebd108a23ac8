"""Invariants 1 and 10: the programs at XDP, ours and those of others."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.kernel.xdp import Mode
from datapath.reload.plans import CILIUM_WG
from datapath.reload.xdp import CIL_XDP_ENTRY
from lab.agent.agent import Agent
from lab.watch.snapshot import Snapshot, XdpProgram
from lab.watch.violation import Violation


def check_xdp(agent: Agent, before: Snapshot, now: Snapshot) -> Iterator[Violation]:
    """Yield the devices without our program in the wanted mode, what does not belong there, and what of others is gone.

    Where it is best effort, a device may have none.
    """
    yield from (Violation(1, what) for what in _ours(agent, now))
    for ifname, was in before.xdp.items():
        there = [each.program_id for each in now.xdp.get(ifname, ())]
        for each in was:
            if not each.is_ours and each.program_id not in there:
                yield Violation(10, f"{ifname} xdp: program {each.name} ({each.program_id}) is gone")


def declared_pins(agent: Agent, now: Snapshot) -> set[str]:
    """Return the paths on the node's bpffs, its directories too, of the links that hold our programs."""
    found: set[str] = set()
    for ifname, link in _links(now).items():
        if link is not None:
            directory = agent.config.device_links(ifname)
            paths = (directory / CIL_XDP_ENTRY, directory, directory.parent)
            found |= {str(path.relative_to(agent.config.bpffs)) for path in paths}
    return found


def declared_links(now: Snapshot) -> set[int]:
    """Return the ids of the links that hold our programs."""
    return {link for link in _links(now).values() if link is not None}


def _links(now: Snapshot) -> dict[str, int | None]:
    return {ifname: each.link_id for ifname, found in now.xdp.items() for each in found if each.is_ours}


def _ours(agent: Agent, now: Snapshot) -> Iterator[str]:
    config = agent.config
    devices = [name for name in config.devices if name != CILIUM_WG and name in now.around.network.links]
    wanted = devices if config.xdp is not None else []
    mode = Mode.GENERIC if config.xdp == "generic" else Mode.NATIVE
    for ifname in sorted({*wanted, *now.xdp}):
        ours = [each for each in now.xdp.get(ifname, ()) if each.is_ours]
        if ifname not in wanted:
            yield from (f"{ifname} xdp: {each.name} is left over" for each in ours)
        elif len(ours) != 1:
            if ours or config.xdp != "best-effort":
                yield f"{ifname} xdp: {len(ours)} programs instead of {CIL_XDP_ENTRY}"
        else:
            yield from _wrong(agent, now, ifname, ours[0], mode)


def _wrong(agent: Agent, now: Snapshot, ifname: str, found: XdpProgram, mode: Mode) -> Iterator[str]:
    if (found.name, found.mode) != (CIL_XDP_ENTRY, mode):
        yield f"{ifname} xdp: {found.name} ({found.mode}) instead of {CIL_XDP_ENTRY} ({mode})"
    missing = declared_pins(agent, now) - now.around.pins if found.link_id is not None else ()
    yield from (f"{ifname} xdp: pin {path} is missing" for path in sorted(missing))

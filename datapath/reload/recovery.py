"""Recovery from killed reloads: the next one finds the pins that they have moved aside, and puts them right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from datapath.base.mapnames import POLICY_ARRAYS, WRITTEN_BY_AGENT, WRITTEN_BY_PACKETS, is_written_while_used
from datapath.kernel.inventory import reach
from datapath.kernel.map import open_pin
from datapath.kernel.pins import Pin, is_program_array, left_behind, map_id
from datapath.object.spec import CollectionSpec
from datapath.reload import policyarrays, retired
from datapath.reload.workspace import Workspace


def find(work: Workspace, spec: CollectionSpec) -> list[Pin]:
    """Return the pins of this object's maps that a killed reload moved aside."""
    left = left_behind(work.config.globals)
    if not left:
        return []
    ours = {pin.path for item in work.objects.values() for pin in item.moved}
    pins = [Pin(work.config.globals / name) for name, wanted in spec.maps.items() if wanted.pinned and name in left]
    return [pin for pin in pins if pin.path not in ours]


def recover(work: Workspace, spec: CollectionSpec, left: list[Pin]) -> None:
    """Finish what killed reloads began, with a warning for each map."""
    if not left:
        return
    slots = {name: spec.maps[name].contents for name in POLICY_ARRAYS if name in spec.maps}
    policy = policyarrays.programs_at(work.config.globals, slots)
    used = reach(retired.attached_programs(work.netlink, work.config.netns) | policy).maps
    for pin in left:
        done = put_right(pin, used.__contains__)
        # Objects of one reload share maps.
        if done is not None and done not in work.warnings:
            work.warnings.append(done)
            _fill_again(work, pin)
            if is_written_while_used(pin.path.name):
                # What is kept is of no use when all programs are new.
                work.let_go(f"the old map {pin.path.name}", pin.finalize)


def _fill_again(work: Workspace, pin: Pin) -> None:
    """Have the control plane fill a map that was put right: meanwhile it may have written to the other one."""
    name = pin.path.name
    if work.on_new_map is None or name.startswith(WRITTEN_BY_PACKETS) or is_program_array(pin.path):
        return
    with open_pin(pin.path) as pinned:
        work.on_new_map(pinned)


def put_right(pin: Pin, in_use: Callable[[int], bool]) -> str | None:
    """Finish what killed reloads began with a map; `in_use` tells whether a program that packets meet uses a map id.

    Killed before its first attach: the old map goes back. Killed after its last: the old one is let go. Killed in
    between, old and new programs are attached side by side: the kernel would empty a program array that loses its
    pin, and nobody could write to a policy map, so each keeps its own until the reload that follows has replaced both;
    other maps need no pin to live on.
    Returns what was done, None if there was nothing to do.
    """
    left = pin.leftovers()
    if not left:
        return None
    if pin.path.name in POLICY_ARRAYS:
        return _put_policy_array_right(pin, left)
    there = pin.path.exists()
    needed = [path for path in left if in_use(map_id(path))]
    if not there or (needed and not in_use(map_id(pin.path))):
        # Without a user the newest is as good as any, and better than none: it has its content.
        back = (needed or left)[0]
        back.rename(pin.path)
        _let_go(path for path in left if path is not back and path not in needed)
        return f"restored {pin.path.name} from {back.name}, left by a reload that did not end"
    # What others write for all is written in each that is pinned (retired.py).
    shared = needed if pin.path.name in WRITTEN_BY_AGENT else []
    kept = [path for path in needed if is_written_while_used(pin.path.name) or is_program_array(path)]
    _let_go(path for path in left if path not in (*kept, *shared))
    if shared:
        pin.retire()
        return f"retired {', '.join(path.name for path in shared)}, left by a reload that did not end"
    if kept:
        return f"kept {', '.join(path.name for path in kept)}: a reload died between two attaches"
    return f"removed {', '.join(path.name for path in left)}, left by a reload that did not end"


def _put_policy_array_right(pin: Pin, left: list[Path]) -> str:
    """Leave the array at its place and retire the others: they are complete, and all have the same slots."""
    if not pin.path.exists():
        left[0].rename(pin.path)
        pin.retire()
        return f"restored {pin.path.name} from {left[0].name}, left by a reload that did not end"
    pin.retire()
    return f"retired {', '.join(path.name for path in left)}, left by a reload that did not end"


def _let_go(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)

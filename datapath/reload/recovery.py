"""Recovery from killed reloads: the next one finds the pins that they have moved aside, and puts them right."""

from __future__ import annotations

from datapath.kernel.inventory import reach
from datapath.kernel.pins import Pin, left_behind
from datapath.mapnames import POLICY_ARRAYS
from datapath.object.spec import CollectionSpec
from datapath.reload import policyarrays
from datapath.reload.workspace import Workspace


def find(work: Workspace, spec: CollectionSpec) -> list[Pin]:
    """Return the pins of this object's maps that another reload has moved aside and did not live to put right."""
    left = left_behind(work.config.globals)
    if not left:
        return []
    ours = {pin.path for item in work.objects.values() for pin in item.moved}
    pins = [Pin(work.config.globals / name) for name, wanted in spec.maps.items() if wanted.pinned and name in left]
    return [pin for pin in pins if pin.path not in ours]


def recover(work: Workspace, spec: CollectionSpec, left: list[Pin]) -> None:
    """Finish what killed reloads began (Pin.recover), with a warning for each map."""
    if not left:
        return
    slots = {name: spec.maps[name].contents for name in POLICY_ARRAYS if name in spec.maps}
    policy = policyarrays.programs_at(work.config.globals, slots)
    used = reach(policyarrays.attached_programs(work.netlink) | policy).maps
    for pin in left:
        done = pin.recover(used.__contains__)
        if done is not None:
            work.warnings.append(done)

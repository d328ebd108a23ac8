"""The systematic faults: every step of every plan skipped, done twice, out of order, or not taken back.

They are made from the plans themselves, so that a new step of the pipeline has its faults at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from datapath.reload.plans import CILIUM_NET
from datapath.reload.step import Plan, Step
from lab.agent.agent import Change
from lab.corpus import steps
from lab.corpus.equivalents import is_idle, reason
from lab.corpus.fault import Fault
from lab.corpus.halves import HALVES
from lab.corpus.models import HOST, OVERLAY, POD, POD_ROUTES, models, place_of, shape_of

_UNDONE = {
    POD: "fault_after_every_step[pod-1]",
    POD_ROUTES: "fault_after_every_step[pod-1-endpoint-routes]",
    HOST: "fault_after_every_step[host]",
    OVERLAY: "fault_after_every_step[overlay]",
}
"""Which scenario undoes every step of a plan."""

_SCENARIOS = {
    POD: ("test_hitless.py::test_between_any_two_steps[pod-1]", _UNDONE[POD], "test_endpoint_routes", "test_rollback"),
    POD_ROUTES: ("steps_with_endpoint_routes[pod-1]", _UNDONE[POD_ROUTES], "test_endpoint_routes", "test_rollback"),
    HOST: ("test_hitless.py::test_between_any_two_steps[host]", "test_host.py", _UNDONE[HOST], "test_rollback"),
    OVERLAY: ("test_overlay", _UNDONE[OVERLAY], "time_between_any_two_steps[overlay]", "test_two_nodes"),
}
"""Which scenarios are likely to notice a fault of a plan first."""

_DEVICES = {
    "device": ("fault_after_every_step[host-with-devices]", "test_devices"),
    "obsolete": ("fault_while_a_device_is_taken", "is_taken_from_the_list", "whom_the_host_asks"),
}
"""Which scenarios have such devices."""


_FIREWALLS_POLICY = "fault_after_every_step[host-firewall]"
"""Where the host has a policy program: it is built only with the host's firewall."""

_FIREWALL = ("before_and_after_a_reload[host-firewall]", "host_firewall_is_switched")
"""Where the calls map of cilium_net has programs: its one program reaches none without the host's policy."""


@dataclass(frozen=True)
class Place:
    """A step of a plan of some shape, wherever such a plan is made."""

    shape: str
    step: str
    place: str

    @property
    def text(self) -> str:
        """The place as it stands in the names of faults: pod/attach-ingress, host/attach-ingress:cilium_net."""
        where = f":{self.place}" if self.place else ""
        return f"{self.shape}/{self.step.replace(' ', '-')}{where}"

    def chooses(self, plan: Plan, step: Step) -> bool:
        """Tell whether this is the step of that plan."""
        return step.name == self.step and shape_of(plan) == self.shape and place_of(plan, step) == self.place


def _dropped(place: Place, plan: Plan) -> Plan:
    return steps.each(plan, place.chooses, steps.skipped)


def _twice(place: Place, plan: Plan) -> Plan:
    return steps.each(plan, place.chooses, steps.twice)


def _swapped(place: Place, plan: Plan) -> Plan:
    return steps.swapped(plan, place.chooses)


def _after_commit(place: Place, plan: Plan) -> Plan:
    return steps.postponed(plan, place.chooses)


def _not_undone(place: Place, plan: Plan) -> Plan:
    return steps.each(plan, place.chooses, steps.kept)


WAYS: dict[str, tuple[str, Callable[[Place, Plan], Plan]]] = {
    "dropped": ("is left out", _dropped),
    "twice": ("is done twice", _twice),
    "swapped": ("is done after the step that follows it", _swapped),
    "after-commit": ("is done when the commit is", _after_commit),
    "not-undone": ("is not taken back when the reload fails", _not_undone),
}
"""How a step goes wrong, by the last part of the fault's name."""


def faults() -> tuple[Fault, ...]:
    """Return all of them, in the order of the plans and their steps."""
    return tuple(
        fault
        for shape, plan in models().items()
        for place in dict.fromkeys(Place(shape, step.name, place_of(plan, step)) for step in plan.steps)
        for fault in (*_faults_of(place), *_halves_of(place))
    )


def _faults_of(place: Place) -> Iterator[Fault]:
    for way, (what, change) in WAYS.items():
        # Nothing follows the commit.
        if place.step == "commit" and way in ("swapped", "after-commit"):
            continue
        hints = _DEVICES.get(place.place, ())
        if way == "not-undone":
            # A map that replaces another is put away by the undo of that; one that is simply new is not.
            first = ("pins_are_lost",) if place.step == "migrate maps" else ()
            hints = (*first, *hints, _UNDONE[place.shape], "test_rollback")
        yield _fault(place, way, what, partial(change, place), hints)


def _halves_of(place: Place) -> Iterator[Fault]:
    for half in HALVES:
        if half.step == place.step and (not half.shapes or place.shape in half.shapes):
            yield _fault(place, half.way, half.what, partial(_changed, place, half.change), half.only)


def _changed(place: Place, change: Callable[[Step], Step], plan: Plan) -> Plan:
    return steps.each(plan, place.chooses, change)


def _fault(place: Place, way: str, what: str, change: Change, hints: tuple[str, ...]) -> Fault:
    name = f"{place.text}/{way}"
    if (place.shape, place.step) == (HOST, "insert policy"):
        hints = (_FIREWALLS_POLICY, *hints)
    if (place.step, place.place) == ("fill arrays", CILIUM_NET) and way != "after-commit":
        hints = (*_FIREWALL, *hints)
    return Fault(
        name,
        "plan",
        f"{place.step}{f' of {place.place}' if place.place else ''} {what}",
        change=change,
        equivalent=reason(name),
        idle=is_idle(name),
        only=(*hints, *_SCENARIOS[place.shape]),
    )

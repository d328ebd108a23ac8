"""Faulty loaders: functions from plan to plan, each a bug that a loader has really had."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datapath.base.mapnames import POLICY_ARRAYS, is_calls_map
from datapath.reload import retired
from datapath.reload.prepare import RepinMaps
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach, Commit, Detach, RemoveRoutes
from datapath.reload.workspace import Workspace
from lab.corpus.fault import Fault
from lab.corpus.steps import Telling, each_of, kept, skipped


@dataclass(frozen=True)
class LetGoOfCalls(Step):
    """Drop the old calls maps now, whoever still uses them."""

    name = "let go of calls"

    def describe(self) -> str:
        return "remove the :pending calls maps too early"

    def apply(self, work: Workspace) -> None:
        for item in work.objects.values():
            for pin in item.moved:
                if is_calls_map(pin.path.name):
                    pin.finalize()


@dataclass(frozen=True)
class LetGoOfArrays(Telling):
    """Drop the arrays of policy programs that were replaced, whoever still jumps through them."""

    name = "let go of arrays"

    def describe(self) -> str:
        return "remove the retired arrays of policy programs too early"

    def apply(self, work: Workspace) -> None:
        for name in POLICY_ARRAYS:
            for path in retired.others(work.config.globals, name):
                path.unlink()
                self.applied()


def finalize_too_early(plan: Plan) -> Plan:
    """Let go of the old calls map after the first attach (cilium issues 16561 and 17744).

    The program in the other direction is still the old one; the kernel empties its calls map under it.
    """
    first = next(i for i, step in enumerate(plan.steps) if isinstance(step, Attach))
    return replace(plan, steps=(*plan.steps[: first + 1], LetGoOfCalls(plan.subject), *plan.steps[first + 1 :]))


def release_arrays_too_early(plan: Plan) -> Plan:
    """Let go of a replaced cilium_call_policy at once, as at the reference commit.

    All endpoints but the reloaded one jump through it; the kernel empties it under them.
    """
    return replace(plan, steps=(*plan.steps, LetGoOfArrays(plan.subject)))


skip_revert = each_of(RepinMaps, kept)
"""Leave moved maps where they are when the load fails (the reference commit does, replaceDatapath)."""

keep_old_egress = each_of(Detach, skipped)
"""Leave the egress program when endpoint routes are switched off (cilium issue 13773)."""

keep_old_routes = each_of(RemoveRoutes, skipped)
"""Leave the endpoint's routes when endpoint routes are switched off, as at the reference commit."""

never_finalize = each_of(Commit, skipped)
"""Leave the old maps pinned for ever."""


FAULTS = (
    Fault(
        "B2-finalize-too-early",
        "named",
        "lets go of the old calls map after the first attach",
        change=finalize_too_early,
        cites=("cilium issue 16561", "cilium issue 17744"),
        only=("hitless", "endpoint_routes"),
    ),
    Fault(
        "release-arrays-too-early",
        "named",
        "removes the replaced cilium_call_policy at once, while other endpoints jump through it",
        change=release_arrays_too_early,
        cites=("the reference commit",),
        only=("policy_array",),
    ),
    Fault(
        "skip-revert",
        "named",
        "leaves moved maps at :pending when the load fails",
        change=skip_revert,
        cites=("the reference commit, replaceDatapath",),
        only=("rollback",),
    ),
    Fault(
        "B23-keep-old-egress",
        "named",
        "leaves the egress program when endpoint routes are switched off",
        change=keep_old_egress,
        cites=("cilium issue 13773",),
        only=("switched_off",),
    ),
    Fault(
        "B23-keep-old-routes",
        "named",
        "leaves the endpoint's routes when endpoint routes are switched off",
        change=keep_old_routes,
        cites=("the reference commit",),
        only=("switched_off",),
    ),
    Fault(
        "never-finalize",
        "named",
        "leaves the old maps pinned for ever",
        change=never_finalize,
        only=("test_off", "hitless"),
    ),
)

"""What a reload has left on its node: all that it says if it has succeeded, and which state if it was killed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from datapath.reload.outcome import Outcome
from lab.agent.agent import Agent
from lab.watch.checks.generation import check_generation
from lab.watch.checks.hooks import check_hooks
from lab.watch.checks.objects import read_objects
from lab.watch.checks.pins import check_pins
from lab.watch.checks.published import check_published
from lab.watch.checks.routes import check_routes
from lab.watch.checks.slots import check_slots
from lab.watch.invariants import check_unchanged
from lab.watch.snapshot import Snapshot, take
from lab.watch.violation import Violation

OLD, NEW, MIXED = "old", "new", "mixed"
"""The states that a killed process can leave: as before it, as after a reload that has succeeded, and any other."""


def not_done(agent: Agent, before: Snapshot, outcomes: Sequence[Outcome]) -> list[Violation]:
    """Return what reloads that say that they have succeeded have not done; `before` is the state before them.

    A pin that is left over is no lie if a warning names it.
    """
    with agent.reloading():
        now = take(agent.node)
        found = [
            *check_generation(agent, before, now, outcomes),
            *_at_hooks(agent, now, {each.ifname for outcome in outcomes for each in outcome.attached}),
            *_of_several_loads(agent, now),
            *check_routes(agent, now),
        ]
    warned = [warning for outcome in outcomes for warning in outcome.warnings]
    left = [name for name in now.pins if ":" in name and any(name.partition(":")[0] in text for text in warned)]
    return [each for each in found if not any(f"pin {name} is left over" in each.what for name in left)]


def _at_hooks(agent: Agent, now: Snapshot, interfaces: Container[str]) -> Iterator[Violation]:
    """Yield what is wrong at the hooks of interfaces; others may be attached the other way still."""
    yield from (each for each in check_hooks(agent, now) if each.what.split()[0] in interfaces)


def state_after_kill(agent: Agent, before: Snapshot) -> str:
    """Return which state a killed process has left: OLD, NEW or MIXED."""
    with agent.reloading():
        now = take(agent.node)
        if not check_unchanged(before, now):
            return OLD
        switched = (before.filters, before.xdp) != (now.filters, now.xdp)
        both = any(sum(item.is_ours for item in found) > 1 for found in now.filters.values())
        return NEW if switched and not both and not any(_of_several_loads(agent, now)) else MIXED


def _of_several_loads(agent: Agent, now: Snapshot) -> Iterator[Violation]:
    """Yield what is not of one load: a slot, a pin, or the object file of what runs."""
    objects = read_objects(agent)
    yield from check_pins(agent, now)
    yield from check_slots(agent, now, objects)
    yield from check_published(agent, now, objects)

"""What packets notice while everything on a node is reloaded, of two sides in turns: the worst delay, what is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from datapath.errors import ReloadlabError
from lab.agent.agent import Agent
from lab.bench.disturbance import Disturbance, disturb
from lab.bench.rounds import Progress
from lab.results.result import STARVED, Series, exact

WHAT = "all is reloaded"

MakeAgent = Callable[[ExitStack, int], Agent]
"""Makes a new node of a side, by its number, that goes when the stack closes, and returns its agent."""


def reloads_under_traffic(
    names: Sequence[str], make: MakeAgent, trials: int, order: random.Random, progress: Progress
) -> list[Series]:
    """Return the series of so many trials of each side, in random order, each on a new node.

    A side that fails has its reason in place of values. Packets that were lost are counted over all trials: one more is
    worse, whatever chance had to do with it.
    """
    done: list[list[Disturbance]] = [[] for _ in names]
    failed: dict[int, str] = {}
    for trial in range(trials):
        progress(f"under traffic: {trial + 1} of {trials}")
        for number in order.sample(range(len(names)), len(names)):
            if number not in failed:
                try:
                    done[number].append(_trial(make, number))
                except ReloadlabError as error:
                    failed[number] = str(error)
    found: list[Series] = []
    for number, name in enumerate(names):
        if number in failed:
            found.append(Series(f"worst delay: {WHAT}", "s", (), side=name, refusal=failed[number]))
            continue
        delays, starved = (tuple(getattr(each, key) for each in done[number]) for key in ("worst_delay", "starved"))
        found += [
            Series(f"worst delay: {WHAT}", "s", delays, side=name),
            Series(f"{STARVED}: {WHAT}", "share", starved, side=name),
            exact(f"lost: {WHAT}", "packets", sum(each.lost for each in done[number]), side=name),
        ]
    return found


def _trial(make: MakeAgent, number: int) -> Disturbance:
    with ExitStack() as stack:
        agent = make(stack, number)
        agent.start()
        return disturb(agent.node, agent.reload_all)

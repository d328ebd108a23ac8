"""The reloads of a scenario: the first loads, what was reloaded since, and when."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from datapath.reload.outcome import FailedReload, Outcome
from lab.agent.agent import Agent
from lab.scenario.timeline import Reload, Timeline


class History:
    """Hears of the reloads of agents: of their first loads, then of all others.

    `outcomes` are the others, with the name of their node, in the order in which they were heard of.
    """

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        self.timeline = Timeline()
        self._first: dict[str, dict[str, int]] = {}

    def hear_first_loads(self, agents: Sequence[Agent]) -> None:
        """Listen to agents that are about to start."""
        for agent in agents:
            agent.on_outcome = partial(self._note_first, self._first.setdefault(agent.node.name, {}))

    def hear(self, agents: Sequence[Agent]) -> None:
        """Listen to agents that have started, those of all nodes, in their order."""
        for number, agent in enumerate(agents, 1):
            prefix = f"{number}/" if len(agents) > 1 else ""
            agent.on_outcome = partial(self._note, agent.node.name, prefix)
            agent.on_failure = partial(self._note_failure, prefix)

    def outcomes_on(self, node: str) -> list[Outcome]:
        """Return the reloads of a node."""
        return [outcome for name, outcome in self.outcomes if name == node]

    def replaced_on(self, node: str) -> dict[int, str]:
        """Return the generations of a node that others have replaced, and what they were loads of."""
        found: dict[int, str] = {}
        last = dict(self._first.get(node, {}))
        for outcome in sorted(self.outcomes_on(node), key=lambda outcome: outcome.end_ns):
            if outcome.subject in last:
                found[last[outcome.subject]] = outcome.subject
            last[outcome.subject] = outcome.generation
        return found

    @staticmethod
    def _note_first(loads: dict[str, int], outcome: Outcome) -> None:
        loads[outcome.subject] = outcome.generation

    def _note(self, node: str, prefix: str, outcome: Outcome) -> None:
        self.outcomes.append((node, outcome))
        self.timeline.add(Reload.of(outcome, prefix + outcome.subject))

    def _note_failure(self, prefix: str, failed: FailedReload) -> None:
        self.timeline.add(Reload.of(failed, prefix + failed.subject))

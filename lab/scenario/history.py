"""The reloads of a scenario: the first loads, what was reloaded since, and when."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bpf import is_ours
from datapath.reload.outcome import FailedReload, Outcome
from lab.agent.agent import Agent
from lab.loaders.plan import PREFIX
from lab.scenario.timeline import Reload, Timeline

_EXCHANGES = ("insert ", "attach ", PREFIX)
"""What the names of the steps begin with after which packets meet the programs of the new load."""


class History:
    """Hears of the reloads of agents: of their first loads, then of all others.

    `outcomes` are the others that came to their end, `failures` those that failed, with the name of their node, in the
    order in which they were heard of.
    """

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        self.timeline = Timeline()
        self._counting: set[tuple[str, int]] = set()
        self._first: dict[str, list[Outcome]] = {}
        self.failures: list[tuple[str, FailedReload]] = []

    def hear_first_loads(self, agents: Sequence[Agent]) -> None:
        """Listen to agents that are about to start."""
        for agent in agents:
            agent.on_outcome = self._first.setdefault(agent.node.name, []).append

    def hear(self, agents: Sequence[Agent]) -> None:
        """Listen to agents that have started, those of all nodes, in their order."""
        for number, agent in enumerate(agents, 1):
            prefix = f"{number}/" if len(agents) > 1 else ""
            agent.on_outcome = partial(self._note, agent, prefix)
            agent.on_failure = partial(self._note_failure, agent.node.name, prefix)

    def loads_on(self, node: str) -> list[Outcome]:
        """Return the reloads of a node whose load stays: also those that failed after their commit."""
        failed = [failed.done for name, failed in self.failures if name == node and failed.done is not None]
        return [*(outcome for name, outcome in self.outcomes if name == node), *failed]

    def undone_on(self, node: str) -> list[FailedReload]:
        """Return the reloads of a node that failed and were undone."""
        return [failed for name, failed in self.failures if name == node and failed.done is None]

    def replaced_on(self, node: str) -> dict[int, str]:
        """Return the generations of a node that others have replaced, and what they were loads of."""
        found: dict[int, str] = {}
        last = {outcome.subject: outcome.generation for outcome in self._first.get(node, ())}
        for outcome in sorted(self.loads_on(node), key=lambda outcome: outcome.end_ns):
            if outcome.subject in last:
                found[last[outcome.subject]] = outcome.subject
            last[outcome.subject] = outcome.generation
        return found

    def generations_at(self, node: str, endpoint_id: int, at_ns: int) -> list[int]:
        """Return the loads of an endpoint whose programs packets could meet at a time (CLOCK_MONOTONIC).

        That is one load, and two while a reload exchanges their programs; none if none is known. The overlay's id is 0.
        """
        found: list[int] = []
        loads = (*self._first.get(node, ()), *self.loads_on(node))
        own = (load for load in loads if load.endpoint_id == endpoint_id)
        for load in sorted(own, key=lambda load: load.end_ns):
            if _exchange_ns(load) <= at_ns:
                found = [*(found if at_ns <= load.end_ns else ()), load.generation]
        for failed in self.undone_on(node):
            until = failed.rollback.end_ns if failed.rollback is not None else 0
            if failed.endpoint_id == endpoint_id and _exchange_ns(failed) <= at_ns <= until:
                found.append(failed.generation)
        return found

    def counts(self, node: str, generation: int) -> bool:
        """Tell whether the programs of a load count packets by their load: they were made from our C."""
        return (node, generation) in self._counting

    def _note(self, agent: Agent, prefix: str, outcome: Outcome) -> None:
        self.outcomes.append((agent.node.name, outcome))
        if is_ours(agent.config.library):
            self._counting.add((agent.node.name, outcome.generation))
        self.timeline.add(Reload.of(outcome, prefix + outcome.subject))

    def _note_failure(self, node: str, prefix: str, failed: FailedReload) -> None:
        self.failures.append((node, failed))
        self.timeline.add(Reload.of(failed, prefix + failed.subject))


def _exchange_ns(reload: Outcome | FailedReload) -> float:
    """Return when the first program of a load came into use; infinity if none did."""
    begun = (span.work.start_ns for span in reload.spans if span.step.startswith(_EXCHANGES))
    return min(begun, default=float("inf"))

"""How many steps reloads have: as many gates must have been passed, whoever the loader is."""

from __future__ import annotations

from reloadlab import Agent


def steps_of(agent: Agent, *subjects: str) -> int:
    """Return how many steps the reloads of these have, as the agent is configured now; of all, if none is named."""
    return sum(len(agent.plan(subject).steps) for subject in subjects or agent.subjects)

"""By which name a release of Cilium has pinned a map."""

from __future__ import annotations

from reloadlab import Agent, map_names


def pinned(agent: Agent, name: str) -> str:
    """Return the name that a map has on this node which the reference commit calls `name`; `name` if it is missing."""
    return next((each for each in map_names(name) if (agent.config.globals / each).exists()), name)

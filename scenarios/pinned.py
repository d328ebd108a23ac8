"""By which name a release of Cilium has pinned a map."""

from __future__ import annotations

from reloadlab import Scenario, map_names


def pinned(scenario: Scenario, name: str) -> str:
    """Return the name that a map has on this node which the reference commit calls `name`; `name` if it is missing."""
    directory = scenario.agent.config.globals
    return next((each for each in map_names(name) if (directory / each).exists()), name)

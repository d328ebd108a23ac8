"""By which name a release of Cilium has pinned a map."""

from __future__ import annotations

from reloadlab import Scenario


def pinned(scenario: Scenario, name: str) -> str:
    """Return the name of a node's map called `name`, or in later releases of Cilium as this with `_v2` in it.

    That of ipcache is since 1.18, those of policies since 1.17.
    """
    newer = (f"{name}_v2", name.replace("cilium_policy_", "cilium_policy_v2_"))
    there = (each for each in newer if (scenario.agent.config.globals / each).exists())
    return next(there, name)

"""The nodes of a scenario as run.json has them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from datapath.errors import ReloadlabError
from lab.agent.agent import Agent
from lab.node.shape import shape_of
from lab.node.view import look


def shapes_of(agents: Sequence[Agent]) -> list[dict[str, Any]]:
    """Return the nodes of these agents as they are now, each with its number; one that is gone is left out."""
    found = []
    for number, agent in enumerate(agents, 1):
        with suppress(ReloadlabError, OSError):
            shape, names = shape_of(look(agent.node), attach=str(agent.config.attach))
            found.append({"number": number, "shape": shape, "names": names})
    return found

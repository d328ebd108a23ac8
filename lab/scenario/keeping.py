"""Labs of failed scenarios that stay, so that somebody can look at them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from bpf import LIBRARY
from lab.agent.agent import Agent
from lab.agent.options import Options
from lab.node.registry import RUN_VARIABLE


def keep(agents: Iterable[Agent]) -> Iterator[str]:
    """Let the nodes of these agents stay, with the options of their programs; yield what says how to look at each."""
    run = os.environ.get(RUN_VARIABLE)
    command = f"{RUN_VARIABLE}={run} reloadlab" if run else "reloadlab"
    for agent in agents:
        node = agent.node
        _options_of(agent).keep(node)
        node.keep()
        first = next((pod.name for pod in node.pods), "node")
        yield f"lab {node.name} is kept:"
        for words in (f"show {node.name}", f"exec {node.name}/{first} -- ip addr", f"down {node.name}"):
            yield f"  {command} {words}"


def _options_of(agent: Agent) -> Options:
    """Return the options with which the agent loads programs; later reloads of the lab take the same."""
    config = agent.config
    library = None if config.library == LIBRARY else str(config.library)
    loader = None if agent.external is None else agent.external.command
    return Options(
        library,
        config.defines,
        config.clang,
        config.filter_priority,
        loader,
        config.attach,
        config.all_programs,
    )

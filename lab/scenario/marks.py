"""What the mark of a scenario says, checked option by option before a node is built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Self

from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError
from lab.node.topology import PodSpec

Kinds = Mapping[str, tuple[type, ...]]

NODE: Kinds = {
    "pods": (int, tuple, list),
    "endpoint_routes": (bool,),
    "tunnel": (bool,),
    "devices": (tuple, list),
    "mtu": (int,),
    "node_index": (int,),
    "cluster": (str,),
    "tunnel_port": (int,),
    "xdp": (str, NoneType),
    "datapath_mode": (str,),
}
"""The fields of NodeSpec, and of what kind they are; the name is the plugin's."""
ITEMS: Mapping[str, type] = {"pods": PodSpec, "devices": str}
"""Of what type the items of a list are."""
CLUSTER: Kinds = {
    **{name: kinds for name, kinds in NODE.items() if name not in ("node_index", "cluster")},
    "nodes": (int,),
    "each": (dict, NoneType),
}
"""The arguments of cluster_specs."""
SCENARIO: Kinds = {
    "flows": (Callable,),  # type: ignore[dict-item]
    "rate": (int, float),
    "bursts": (str,),
    "policy": (str, NoneType),
}
"""Options of Scenario and ClusterScenario that stand beside them."""
AGENT: Kinds = {
    "library": (str, Path, NoneType),
    "clang": (str, NoneType),
    "templates": (str, Path, NoneType),
    "defines": (tuple, list),
    "verifiers": (int, NoneType),
    "filter_priority": (int,),
    "loader": (str, NoneType),
    "attach": (str,),
    "all_programs": (bool,),
    "gated": (tuple, list),
    "on_compile": (Callable, NoneType),  # type: ignore[dict-item]
}
"""Options of Agent, in `agent`."""


class BadMark(ReloadlabError):
    """A mark with an unknown option, or with a value of the wrong type."""

    def __init__(self, mark: str, reason: str) -> None:
        super().__init__(f"mark {mark}: {reason}")
        self.mark = mark


@dataclass(frozen=True, slots=True)
class MarkOptions:
    """`nodes` for NodeSpec or cluster_specs; `scenario` for Scenario or ClusterScenario, with those of the agents.

    `macros` are the names of those that the mark itself defines.
    """

    nodes: dict[str, Any]
    scenario: dict[str, Any]
    macros: frozenset[str]

    @classmethod
    def parse(cls, mark: str, args: tuple[Any, ...], options: Mapping[str, Any], *, nodes: Kinds) -> Self:
        """Sort the arguments of a mark, `nodes` being the options it takes for its nodes; BadMark if one is wrong."""
        if args:
            raise BadMark(mark, f"{args[0]!r} has no name: every option is given as NAME=VALUE")
        _check(mark, options, {**nodes, **SCENARIO, "agent": (dict,)})
        agent = dict(options.get("agent", {}))
        _check(f"{mark}, agent", agent, AGENT)
        each = _each(mark, options.get("each") or {}, nodes)
        if "attach" in agent:
            try:
                agent["attach"] = Attachment(agent["attach"])
            except ValueError:
                raise BadMark(mark, f"agent: attach is {agent['attach']!r}, not tc, tcx or auto") from None
        for name in ("library", "templates"):
            if isinstance(agent.get(name), str):
                agent[name] = Path(agent[name]).resolve()
        if "gated" in agent:
            if wrong := [item for item in agent["gated"] if not isinstance(item, str | Path)]:
                raise BadMark(mark, f"agent: gated has {wrong[0]!r}, not a path")
            agent["gated"] = tuple(Path(item).resolve() for item in agent["gated"])
        for pair in agent.get("defines", ()):
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(word, str) for word in pair)):
                raise BadMark(mark, f"agent: defines has {pair!r}, not (NAME, VALUE)")
        return cls(
            {**_tuples({name: value for name, value in options.items() if name in nodes}), **each},
            {**agent, **{name: value for name, value in options.items() if name in SCENARIO}},
            frozenset(name for name, _ in agent.get("defines", ())),
        )


def _check(where: str, options: Mapping[str, Any], known: Kinds) -> None:
    for name, value in options.items():
        if name not in known:
            raise BadMark(where, f"no option {name}; there are {', '.join(sorted(known))}")
        # A bool is an int to Python, but no number here.
        wrong = isinstance(value, bool) and bool not in known[name]
        if wrong or not isinstance(value, known[name]):
            kinds = " or ".join("None" if kind is NoneType else kind.__name__ for kind in known[name])
            raise BadMark(where, f"{name} is {value!r}, not {kinds}")
        for item in value if name in ITEMS and isinstance(value, tuple | list) else ():
            if not isinstance(item, ITEMS[name]):
                raise BadMark(where, f"{name} has {item!r}, not {ITEMS[name].__name__}")


def _each(mark: str, each: Mapping[Any, Any], nodes: Kinds) -> dict[str, Any]:
    """Return the option `each` with the fields of single nodes checked; nothing if there are none."""
    fields = {name: kinds for name, kinds in nodes.items() if name in NODE}
    for number, own in each.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise BadMark(mark, f"each: {number!r} is not the number of a node")
        if not isinstance(own, dict):
            raise BadMark(mark, f"each: {number!r} has {own!r}, not a dictionary of fields")
        _check(f"{mark}, each, {number}", own, fields)
    return {"each": {number: _tuples(own) for number, own in each.items()}} if each else {}


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with tuples instead of lists: a spec is hashable."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}

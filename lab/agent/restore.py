"""Restore: an agent that starts on a node that runs, and knows of its endpoints what their state directories say.

After daemon/cmd/state.go: find the endpoints, leave out those that are gone or whose interface is, reload the others,
and only then remove what belongs to none of them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from datapath.endpoint import Endpoint
from datapath.reload import restore as directories
from datapath.reload.outcome import Outcome
from lab.agent import aside
from lab.agent.collector import forget
from lab.node.topology import HEALTH, HOST

if TYPE_CHECKING:
    from lab.agent.agent import Agent


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a restore.

    `outcomes` are the reloads. `anew` are subjects of which no directory told, but which the node has: they were loaded
    like new ones. `lost` are those that could not be reloaded because their interface is gone. Both with the reason.
    `removed` is what belonged to endpoints that are gone.
    """

    outcomes: Sequence[Outcome]
    anew: Mapping[str, str]
    lost: Mapping[str, str]
    removed: Sequence[str]


def restore(agent: Agent, *, workers: int, last: Sequence[str], cancel: threading.Event | None) -> Restored:
    """Restore a node; the first failure of a reload is raised, and nothing is removed then.

    Reloads and switches by others wait meanwhile. `last` is what waits for the endpoints, such as the host.
    """
    with agent.switching(cancel=cancel):
        found = directories.find_endpoints(agent.config.state)
        names = (HOST, HEALTH, *(pod.name for pod in agent.node.pods))
        declared = {name: agent.endpoint(name) for name in names}
        anew = {name: why for name, each in declared.items() if (why := _why_unknown(each, found)) is not None}
        links = agent.loader.links()
        lost = {name: why for name, each in declared.items() if (why := directories.why_not(each, links)) is not None}
        for name in declared.keys() - anew.keys():
            number = declared[name].id
            directories.take_place(agent.config.state, number, found.endpoints[number][1])
        agent.sync(sweep=False, partly=True, cancel=cancel)
        _remove_predecessors(agent, found, declared.values())
        outcomes = agent.reload_all(workers=workers, last=last, without=lost, cancel=cancel)
        removed = _remove(agent, found, {each.id for each in declared.values()}, cancel)
        aside.recover(agent)
    return Restored(outcomes, {name: why for name, why in anew.items() if name not in lost}, lost, removed)


def _why_unknown(declared: Endpoint, found: directories.Found) -> str | None:
    """Return why no directory tells an endpoint that the node has; None if one does."""
    number = declared.id
    if number not in found.endpoints:
        return found.unknown.get(number, f"there is no directory {number}")
    known, path = found.endpoints[number]
    lasting = [(each.ifname, each.ifindex, each.mac, each.node_mac) for each in (known, declared)]
    return None if lasting[0] == lasting[1] else f"directory {path.name} is that of a former endpoint {number}"


def _remove_predecessors(agent: Agent, found: directories.Found, declared: Iterable[Endpoint]) -> None:
    """Unload endpoints whose numbers others have by now: these would inherit their policy and their connections.

    A directory that tells something else of the present interface is damaged, and tells of no other endpoint.
    """
    for present in declared:
        former, _ = found.endpoints.get(present.id, (present, None))
        if (former.ifname, former.ifindex) != (present.ifname, present.ifindex):
            agent.unload_endpoint(former, str(former.id), forget=lambda: None)
            forget(agent.config, _addresses([former]))


def _remove(
    agent: Agent, found: directories.Found, present: Collection[int], cancel: threading.Event | None
) -> list[str]:
    """Remove what belongs to endpoints that the node has no more, each in the order of an unload."""
    removed = []
    gone = [endpoint for number, (endpoint, _) in found.endpoints.items() if number not in present]
    for endpoint in gone:
        agent.unload_endpoint(endpoint, str(endpoint.id), forget=lambda: agent.sync(cancel=cancel))
        removed.append(f"endpoint {endpoint.id}")
    agent.sync(cancel=cancel)
    with agent.updating(cancel=cancel):
        endpoints = agent.node.endpoints()
        # The next endpoint with an address of theirs must not inherit their connections; one that has it already keeps
        # its own.
        if free := _addresses(gone) - _addresses(endpoints):
            forget(agent.config, free)
        return [*removed, *agent.loader.sweep({endpoint.id for endpoint in endpoints})]


def _addresses(endpoints: Iterable[Endpoint]) -> set[IPv4Address | IPv6Address]:
    return {address for each in endpoints for address in (each.ipv4, each.ipv6) if address is not None}

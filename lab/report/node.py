"""A node at the end of a scenario: its interfaces, pods, routes and neighbours, and the programs at its hooks.

What the programs are is known from the reloads, the rest from the node's shape (lab.node.shape). Runs of earlier
versions have none: their nodes have the interfaces alone whose programs a reload attached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datapath.endpoint import XDP_MODES
from datapath.reload.outcome import XDP_DIRECTION
from datapath.reload.plans import CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN, OVERLAY_SUBJECT
from lab.node.shape import with_names
from lab.node.topology import HOST, NODE, OUTSIDE
from lab.report.figure import Table
from lab.report.places import end_of
from lab.system.words import plural

Json = Mapping[str, Any]

DIRECTIONS = ("ingress", "egress", XDP_DIRECTION)
_DEVICES = (CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN)
"""The devices of a node that come first."""
_OF_THE_NODE = (HOST, OVERLAY_SUBJECT, XDP_DIRECTION)
"""Subjects that are no endpoint with a namespace of its own."""
_ROUTES_TOLD = 6
_WAYS = ("tcx", "netkit", *XDP_MODES)
"""What the kernel's name of a program is followed by, in brackets."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook with the program that the last reload attached there, and the generations of all reloads that did.

    `packets` are those that have entered this load's program, at whatever hook; None if nobody counted. A program that
    no reload of the scenario attached has no `program_id`; its load is an earlier one, or it is not ours.
    """

    ifname: str
    direction: str
    program: str
    subject: str
    program_id: int | None = None
    attachment: str = ""
    generation: int = 0
    loads: tuple[int, ...] = ()
    packets: int | None = None

    @property
    def words(self) -> str:
        """Everything about the hook in one sentence."""
        if self.program_id is None:
            return f"{self.ifname} {self.direction}: {self.program}, which no reload of this scenario attached"
        times = f"; attached by {plural(len(self.loads), 'reload')}" if self.loads else ""
        entered = "" if self.packets is None else f", {plural(self.packets, 'packet')}"
        how = f" by {self.attachment}" if self.direction != XDP_DIRECTION else ""
        return (
            f"{self.ifname} {self.direction}: {self.program}{how}, generation {self.generation} of {self.subject}, "
            f"program id {self.program_id}{entered}{times}"
        )

    @property
    def short(self) -> str:
        """The subject without the number of its node."""
        return self.subject.rpartition("/")[2]

    @property
    def row(self) -> tuple[str, ...]:
        """The same as cells of a table, without the interface."""
        if self.program_id is None:
            return (self.direction, self.program, *("-",) * 5)
        packets = "-" if self.packets is None else f"{self.packets:,}"
        before = ", ".join(map(str, self.loads[:-1][-8:])) or "-"
        return (
            *(self.direction, self.program, str(self.program_id), self.attachment, str(self.generation)),
            *(packets, before),
        )


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the node, the subject whose reloads concern it, and its hooks in the order of DIRECTIONS.

    `facts` are those of the shape, `inside` those of its other end in a pod; both are empty in runs of earlier
    versions. `routes` are those that lead out of it.
    """

    name: str
    subject: str
    hooks: tuple[Hook, ...]
    facts: Json
    inside: Json
    routes: tuple[str, ...] = ()

    @property
    def is_endpoint(self) -> bool:
        """Whether its other end is in a pod, or in the health endpoint."""
        return bool(self.subject) and self.subject not in _OF_THE_NODE

    @property
    def loads(self) -> int:
        """How often reloads attached programs to it."""
        return sum(len(hook.loads) for hook in self.hooks)

    @property
    def tied(self) -> str:
        """What it is connected to, in words; empty if nothing is known of that."""
        return _tied(self.facts, NODE)

    @property
    def words(self) -> str:
        """Everything about the interface, its hooks excepted."""
        if not self.facts:
            return f"{self.name}, of {self.subject}"
        facts = f"{self.facts['kind']}, index {self.facts['ifindex']}, MTU {self.facts['mtu']}"
        down = "" if self.facts["up"] else ", down"
        addresses = "".join(f", {address}" for address in self.facts["addresses"])
        return f"{self.name}: {facts}{down}{addresses}{self.tied and ', '}{self.tied}. {_routes(self.routes)}"


def _tied(facts: Json, namespace: str) -> str:
    """Return what an interface of a namespace is connected to, in words."""
    words = []
    if (peer := facts.get("peer")) is not None:
        place = "" if peer["namespace"] == namespace else f" of {peer['namespace']}"
        words.append(f"pair with {peer['name']}{place}")
    if facts.get("parent") is not None:
        vlan = "" if facts["vlan"] is None else f"VLAN {facts['vlan']} "
        words.append(f"{vlan}on {facts['parent']}")
    if facts.get("master") is not None:
        words.append(f"port of {facts['master']}")
    if facts.get("port") is not None:
        words.append(f"UDP port {facts['port']}")
    return ", ".join(words)


def _routes(routes: Sequence[str]) -> str:
    """Return the routes by an interface in words."""
    if not routes:
        return "No route leads here."
    more = len(routes) - _ROUTES_TOLD
    told = "; ".join(routes[:_ROUTES_TOLD]) + (f"; and {more} more in the table" if more > 0 else "")
    return f"{plural(len(routes), 'route')} here: {told}."


@dataclass(frozen=True, slots=True)
class Other:
    """Another node of the cluster."""

    name: str
    addresses: tuple[str, ...]
    pods: tuple[str, ...]
    port: str

    @property
    def words(self) -> str:
        return f"{self.name}: {', '.join(self.addresses)}; its pods have {' and '.join(self.pods)}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A node: its name (empty where a scenario has only one), its interfaces, and its shape, which may be missing."""

    name: str
    interfaces: tuple[Interface, ...]
    shape: Json

    @property
    def endpoints(self) -> list[Interface]:
        """The interfaces of pods and of the health endpoint, which is the last."""
        return [each for each in self.interfaces if each.is_endpoint and self._is_there(each)]

    @property
    def devices(self) -> list[Interface]:
        """The node's own devices that do something: cilium_vxlan does if there is a tunnel."""
        return [each for each in self.interfaces if not each.is_endpoint and self._works(each)]

    def _is_there(self, interface: Interface) -> bool:
        """Tell whether an interface was there at the end: a pod that was removed has left its hooks in the table."""
        return bool(interface.facts) or not self.shape

    def _works(self, interface: Interface) -> bool:
        if interface.hooks or not interface.facts:
            return self._is_there(interface)
        if interface.facts["kind"] == "vxlan":
            return bool(self.shape["tunnel"])
        # With some modules each namespace has fallback tunnels, which nobody uses.
        return bool(interface.facts["addresses"] or interface.facts["peer"] or interface.facts["parent"])

    @property
    def outside(self) -> Sequence[Json]:
        """The interfaces of the world outside."""
        return list(self.shape.get("outside", ()))

    @property
    def others(self) -> list[Other]:
        """The other nodes of the cluster."""
        return [
            Other(f"node {each['number']}", tuple(each["addresses"]), tuple(each["pods"]), each["port"])
            for each in self.shape.get("others", ())
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """How the node is set up, as names and values."""
        shape = self.shape
        if not shape:
            return []
        mtu, inner = str(shape["mtu"]), shape["route_mtu"]
        return [
            ("to other nodes", f"VXLAN, UDP port {shape['tunnel_port']}" if shape["tunnel"] else "native routing"),
            ("to its pods", "endpoint routes" if shape["endpoint_routes"] else f"one route by {CILIUM_HOST}"),
            ("devices of pods", shape["datapath_mode"]),
            ("programs attached by", shape["attach"]),
            ("native devices", ", ".join(shape["devices"]) or "none"),
            ("XDP", shape["xdp"] or "off"),
            ("MTU", mtu if shape["mtu"] == inner else f"{mtu}, pods' default route {inner}"),
        ]

    @property
    def alt(self) -> str:
        """The drawing in a sentence."""
        pods, others = len(self.endpoints), self.others
        names = ", ".join(each.name for each in self.devices)
        near = f"; beside it {', '.join(each.name for each in others)}" if others else ""
        return (
            f"{f'Node {self.name}' if self.name else 'The node'}: {plural(pods, 'endpoint')} in namespaces of their "
            f"own, and the devices {names or 'none'}{near}. The tables below have the same."
        )

    @property
    def tables(self) -> list[tuple[str, Table]]:
        """The same as tables, each under a few words."""
        found = [("Interfaces as a table", self._interfaces_table())] if self.shape else []
        hooks = sum(len(each.hooks) for each in self.interfaces)
        found.append((f"{plural(hooks, 'hook')} as a table", self.table))
        if self.others:
            rows = [(each.name, ", ".join(each.addresses), ", ".join(each.pods), each.port) for each in self.others]
            columns = ("node", "addresses", "pods", "port of the bridge")
            found.append((f"{plural(len(rows), 'other node')} as a table", Table(columns, rows, caption="Other nodes")))
        return found

    @property
    def routes(self) -> Sequence[Json]:
        """The routes of the node, each with the interface that it leads out of."""
        return list(self.shape.get("routes", ()))

    @property
    def of(self) -> str:
        return f" of node {self.name}" if self.name else ""

    def _interfaces_table(self) -> Table:
        columns = ("interface", "namespace", "kind", "index", "MTU", "addresses", "connected to")
        rows = []
        for each in (each for each in self.interfaces if self._is_there(each)):
            rows.append(_facts_row(NODE, each.facts))
            if each.inside:
                rows.append(_facts_row(each.subject, each.inside))
        rows += [_facts_row(OUTSIDE, each) for each in self.outside]
        return Table(columns, rows, frozenset({3, 4}), f"Interfaces{self.of}")

    @property
    def table(self) -> Table:
        """The hooks as a table."""
        columns = (
            *("interface", "of", "hook", "program", "id", "attached by", "generation", "packets"),
            "generations before",
        )
        rows = [(each.name, hook.short or "-", *hook.row) for each in self.interfaces for hook in each.hooks]
        return Table(columns, rows, frozenset({4, 6, 7}), f"Hooks{self.of}")


def _facts_row(namespace: str, facts: Json) -> tuple[str, ...]:
    tied = _tied(facts, namespace)
    kind = facts["kind"] if facts["up"] else f"{facts['kind']}, down"
    numbers = (str(facts["ifindex"]), str(facts["mtu"]))
    return (facts["name"], namespace, kind, *numbers, ", ".join(facts["addresses"]) or "-", tied or "-")


def drawings(reloads: Sequence[Json], nodes: Iterable[tuple[Json, Json]] = ()) -> list[Drawing]:
    """Return the nodes of a scenario as its last reloads left them.

    `nodes` are the objects of run.json's `scenarios[].nodes`, each with its shape. Of a node without one, the
    interfaces alone are known that reloads concerned.
    """
    latest, loads = _latest(reloads)
    known = {node["number"]: with_names(shape, node["names"]) for node, shape in nodes}
    named = len(known) > 1
    by_node: dict[str, dict[str, list[Json]]] = {str(number) if named else "": {} for number in known}
    for subject, reload in sorted(latest.items(), key=lambda item: _rank(item[0])):
        node = subject.rpartition("/")[0]
        for ifname in dict.fromkeys(each["ifname"] for each in reload["attached"]):
            # Those of the host and of XDP concern the same devices.
            by_node.setdefault(node, {}).setdefault(ifname, []).append(reload)
    found = []
    for name, reloaded in sorted(by_node.items(), key=lambda item: (len(item[0]), item[0])):
        shape = known.get(int(name) if name.isdecimal() else next(iter(known), 0), {})
        hooks = {
            ifname: [hook for reload in last for hook in _hooks(reload, ifname, loads)]
            for ifname, last in reloaded.items()
        }
        interfaces = tuple(_interfaces(shape, hooks))
        if interfaces:
            found.append(Drawing(name, interfaces, shape))
    return found


Loads = Mapping[tuple[str, str, str], Sequence[int]]
"""The generations of reloads by subject, interface and direction."""


def _latest(reloads: Sequence[Json]) -> tuple[dict[str, Json], Loads]:
    """Return the last reload of each subject that succeeded, and the generations of all of them."""
    ordered = sorted((reload for reload in reloads if not reload["error"]), key=end_of)
    loads: dict[tuple[str, str, str], list[int]] = {}
    for reload in ordered:
        for each in reload["attached"]:
            loads.setdefault((reload["subject"], each["ifname"], each["direction"]), []).append(reload["generation"])
    return {reload["subject"]: reload for reload in ordered}, loads


def _hooks(reload: Json, ifname: str, loads: Loads) -> Iterator[Hook]:
    # Of earlier runs, where nobody counted: the last packet of a scenario enters some program of each last load.
    packets: Mapping[str, int] | None = reload.get("packets") or None
    for each in reload["attached"]:
        if each["ifname"] == ifname:
            yield Hook(
                **{name: each[name] for name in ("ifname", "direction", "program", "program_id", "attachment")},
                generation=reload["generation"],
                subject=reload["subject"],
                loads=tuple(loads[reload["subject"], ifname, each["direction"]]),
                packets=None if packets is None else packets.get(each["program"], 0),
            )


def _interfaces(shape: Json, hooks: Mapping[str, Sequence[Hook]]) -> Iterator[Interface]:
    """Yield the interfaces of a node in the order in which they are drawn: pods, health, devices."""
    facts = {each["name"]: each for each in shape.get("interfaces", ())}
    endpoints = {each["ifname"]: each for each in shape.get("endpoints", ())}
    health, pods = list(endpoints)[:1], list(endpoints)[1:]
    gone = (name for name in hooks if name not in facts)
    for name in dict.fromkeys((*pods, *health, *sorted(facts, key=_device), *gone)):
        if name not in facts and name not in hooks:
            continue
        own, endpoint = facts.get(name, {}), endpoints.get(name)
        reloaded = hooks.get(name, ())
        subject = endpoint["name"] if endpoint else next((hook.short for hook in reloaded), "")
        at_hooks = [*reloaded, *_not_reloaded(own, name, subject, reloaded)]
        ordered = sorted(at_hooks, key=lambda hook: (*DIRECTIONS, hook.direction).index(hook.direction))
        inside = endpoint["inside"] or {} if endpoint else {}
        routes = tuple(route["text"] for route in shape.get("routes", ()) if route["dev"] == name)
        yield Interface(name, subject, tuple(ordered), own, inside, routes)


def _not_reloaded(facts: Json, ifname: str, subject: str, reloaded: Iterable[Hook]) -> Iterator[Hook]:
    """Yield the hooks whose programs no reload of the scenario attached: those of the first load, and of others."""
    for direction in DIRECTIONS:
        known = [hook.program for hook in reloaded if hook.direction == direction]
        for text in facts.get(direction, ()):
            # A filter is called after its program and its interface; in brackets stands how it is attached.
            program = re.sub(rf" \(({'|'.join(_WAYS)})\)$", "", text).removesuffix(f"-{ifname}")
            # The kernel keeps the beginning of a name.
            if not any(name.startswith(program) for name in known):
                yield Hook(ifname, direction, program, subject)


def _device(name: str) -> int:
    """Return a place in the drawing: the devices of every node first, the others by index, as they are listed."""
    return _DEVICES.index(name) if name in _DEVICES else len(_DEVICES)


def _rank(subject: str) -> tuple[int, str]:
    """Return a place in the drawing: pods first, then what belongs to the host."""
    short = subject.rpartition("/")[2]
    return (_OF_THE_NODE.index(short) + 1 if short in _OF_THE_NODE else 0, subject)

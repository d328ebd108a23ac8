"""A node drawn from the facts of its reloads: which program is at which hook of which interface, of which load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datapath.reload.outcome import XDP_DIRECTION
from lab.report.figure import Table, counted
from lab.report.places import end_of

Json = Mapping[str, Any]

DIRECTIONS = ("ingress", "egress", XDP_DIRECTION)
_OUTSIDE = {"host": "host", "overlay": "tunnel", XDP_DIRECTION: "device"}
"""What stands above an interface of a subject that is no pod."""

MOST = 40
"""Interfaces that are drawn; of more there is only the table."""

WIDTH, _COLUMN, _ROW, _MARGIN, _HOOK = 720, 170, 128, 12, 22
"""In units of the drawing: its width, a place for an interface, the margin, the height of a hook."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook with the program that the last reload attached there, and the generations of all reloads that did.

    `packets` are those that have entered this load's program, at whatever hook; None if nobody counted.
    """

    ifname: str
    direction: str
    program: str
    program_id: int
    attachment: str
    generation: int
    subject: str
    loads: tuple[int, ...]
    packets: int | None

    @property
    def words(self) -> str:
        """Everything about the hook in one sentence."""
        times = f"; attached by {counted(len(self.loads), 'reload')}" if self.loads else ""
        entered = "" if self.packets is None else f", {counted(self.packets, 'packet')}"
        how = f" by {self.attachment}" if self.direction != XDP_DIRECTION else ""
        return (
            f"{self.ifname} {self.direction}: {self.program}{how}, generation {self.generation} of {self.subject}, "
            f"program id {self.program_id}{entered}{times}"
        )


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a node, the subject whose reloads concern it, and its hooks in the order of DIRECTIONS."""

    name: str
    subject: str
    hooks: tuple[Hook, ...]

    @property
    def peer(self) -> str:
        """What is at the other end: the pod, or in a word what the interface is for."""
        return _OUTSIDE.get(self.subject, self.subject)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A node: its name (empty where a scenario has only one) and its interfaces."""

    name: str
    interfaces: tuple[Interface, ...]

    @property
    def drawn(self) -> bool:
        return len(self.interfaces) <= MOST

    @property
    def per_row(self) -> int:
        return (WIDTH - 2 * _MARGIN) // _COLUMN

    @property
    def height(self) -> int:
        return -(-len(self.interfaces) // self.per_row) * _ROW + 2 * _MARGIN + 20

    def places(self) -> Iterable[tuple[Interface, int, int]]:
        """Yield each interface with the place of its upper left corner."""
        for number, interface in enumerate(self.interfaces):
            row, column = divmod(number, self.per_row)
            yield interface, _MARGIN + column * _COLUMN, _MARGIN + 20 + row * _ROW

    @property
    def table(self) -> Table:
        """The same as a table."""
        columns = (
            *("interface", "of", "hook", "program", "id", "attached by", "generation", "packets"),
            "generations before",
        )
        rows = [
            (
                interface.name,
                interface.subject,
                hook.direction,
                hook.program,
                str(hook.program_id),
                hook.attachment,
                str(hook.generation),
                "-" if hook.packets is None else f"{hook.packets:,}",
                ", ".join(map(str, hook.loads[:-1][-8:])) or "-",
            )
            for interface in self.interfaces
            for hook in interface.hooks
        ]
        return Table(columns, rows, frozenset({4, 6, 7}), f"Hooks{f' of node {self.name}' if self.name else ''}")


def drawings(reloads: Sequence[Json]) -> list[Drawing]:
    """Return the nodes of a scenario as its last reloads left them; only interfaces that these concerned are known."""
    ordered = sorted((reload for reload in reloads if not reload["error"]), key=end_of)
    latest = {reload["subject"]: reload for reload in ordered}
    loads: dict[tuple[str, str, str], list[int]] = {}
    for reload in ordered:
        for each in reload["attached"]:
            loads.setdefault((reload["subject"], each["ifname"], each["direction"]), []).append(reload["generation"])
    nodes: dict[str, list[Interface]] = {}
    for subject, reload in sorted(latest.items(), key=lambda item: _rank(item[0])):
        node, _, short = subject.rpartition("/")
        nodes.setdefault(node, []).extend(_interfaces(reload, short, loads))
    return [Drawing(name, tuple(found)) for name, found in sorted(nodes.items()) if found]


def _interfaces(reload: Json, short: str, loads: Mapping[tuple[str, str, str], list[int]]) -> Iterable[Interface]:
    # Of earlier runs, where nobody counted: the last packet of a scenario enters some program of each last load.
    packets: Mapping[str, int] | None = reload.get("packets") or None
    for ifname in dict.fromkeys(each["ifname"] for each in reload["attached"]):
        hooks = [
            Hook(
                **{name: each[name] for name in ("ifname", "direction", "program", "program_id", "attachment")},
                generation=reload["generation"],
                subject=reload["subject"],
                loads=tuple(loads[reload["subject"], ifname, each["direction"]]),
                packets=None if packets is None else packets.get(each["program"], 0),
            )
            for each in reload["attached"]
            if each["ifname"] == ifname
        ]
        ordered = sorted(hooks, key=lambda hook: (*DIRECTIONS, hook.direction).index(hook.direction))
        yield Interface(ifname, short, tuple(ordered))


def _rank(subject: str) -> tuple[int, str]:
    """Return a place in the drawing: pods first, then what belongs to the host."""
    short = subject.rpartition("/")[2]
    return (list(_OUTSIDE).index(short) + 1 if short in _OUTSIDE else 0, subject)

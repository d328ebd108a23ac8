"""Where the parts of a drawn node are: boxes and the lines between them, for a wide screen and for a narrow one.

Wide, there are four columns: pods, the node's ends of their devices, its own devices, what is outside. Narrow, there
are two: the node with all of its interfaces, and beside each what it is connected to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lab.report.node import Drawing, Hook, Interface, Other
from lab.system.words import plural

MOST, FOLDED_TO = 8, 6
"""Pods that are drawn at most, and how many if there are more."""
MOST_OTHERS, OTHERS_FOLDED_TO = 4, 3
"""The same of other nodes."""

_TITLE, _LINE, _HOOK, _PAD = 18, 15, 22, 7
"""Heights: of a title, a line, a hook, and what is left free above and below."""
_BETWEEN, _JOINED = 14, 26
"""The distance of two boxes, and of two that a line joins."""
_PORT = 16
"""How far below the upper edge of a box its line ends."""
_TOP = 34
_LETTER, _WIDE_LETTER, _BOLD = 5.9, 10.8, 1.25
"""The width of a letter, roughly; of the widest ones; by how much those of a title are wider."""
_WIDE_LETTERS = frozenset("mwMW@%…—")


@dataclass(frozen=True, slots=True)
class Columns:
    """Where columns begin and how wide they are; `devices` is that of the node's own, the same as `ends` if narrow."""

    name: str
    width: int
    pods: tuple[int, int]
    ends: tuple[int, int]
    devices: tuple[int, int]
    outside: tuple[int, int]
    node: tuple[int, int]

    @property
    def is_narrow(self) -> bool:
        return self.ends == self.devices


WIDE = Columns("broad", 820, (8, 168), (222, 176), (430, 176), (660, 152), (208, 412))
NARROW = Columns("narrow", 338, (4, 144), (166, 156), (166, 156), (4, 144), (156, 178))


@dataclass(frozen=True, slots=True)
class Box:
    """A box with its texts; `words` are told when it is hovered or focused. `name` is that of an interface."""

    kind: str
    x: int
    y: int
    width: int
    title: str
    lines: Sequence[str]
    words: str
    hooks: Sequence[Hook] = ()
    name: str = ""

    @property
    def height(self) -> int:
        return self.head + len(self.hooks) * _HOOK + (4 if self.hooks else 0)

    @property
    def head(self) -> int:
        """The height without the hooks."""
        return 2 * _PAD + _TITLE + len(self.lines) * _LINE

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def head_line(self) -> str:
        """The title, as long as it can be."""
        return cut(self.title, (self.width - 14) / _BOLD)

    @property
    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield each line with its place below the upper edge; too long ones are cut."""
        for number, line in enumerate(self.lines):
            yield _PAD + _TITLE + (number + 1) * _LINE - 4, cut(line, self.width - 14)

    @property
    def places(self) -> Iterator[tuple[int, Hook, str]]:
        """Yield each hook with its place and its text."""
        for number, hook in enumerate(self.hooks):
            text = f"{hook.direction} {hook.program.removeprefix('cil_')}"
            yield self.head + number * _HOOK, hook, cut(text, self.width - 20)


@dataclass(frozen=True, slots=True)
class Line:
    """A line between boxes: `pair` (of devices, or a wire), `tunnel`, or `vlan`."""

    kind: str
    path: str


@dataclass(slots=True)
class Picture:
    """A drawn node: its size, the frame around what is in the node's namespace, boxes and lines."""

    columns: Columns
    boxes: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    node_bottom: int = _TOP

    @property
    def height(self) -> int:
        return max(self.node_bottom, *(box.bottom for box in self.boxes), 0) + _BETWEEN

    def put(self, box: Box) -> Box:
        self.boxes.append(box)
        return box


def cut(text: str, width: float) -> str:
    """Return a text that is no wider than this."""
    ends = list(accumulate(_WIDE_LETTER if letter in _WIDE_LETTERS else _LETTER for letter in text))
    if not ends or ends[-1] <= width:
        return text
    return text[: sum(end <= width - _WIDE_LETTER for end in ends)] + "…"


def pictures(drawing: Drawing) -> list[Picture]:
    """Return a node as it is drawn on a wide screen and on a narrow one."""
    return [_picture(drawing, columns) for columns in (WIDE, NARROW)]


def _picture(drawing: Drawing, columns: Columns) -> Picture:
    picture = Picture(columns)
    below = _endpoints(drawing, picture)
    devices = _devices(drawing, picture, below if columns.is_narrow else _TOP)
    picture.node_bottom = max(box.bottom for box in picture.boxes) + _BETWEEN
    _outside(drawing, picture, devices)
    return picture


def _endpoints(drawing: Drawing, picture: Picture) -> int:
    """Put each pod beside its interface, and return where the next one would be."""
    shown, folded = _chosen(drawing.endpoints)
    (x, width), (end_x, end_width) = picture.columns.pods, picture.columns.ends
    y = _TOP
    for each in shown:
        pod = picture.put(Box("pod", x, y, width, each.subject, _inside(each), _pod_words(each)))
        end = picture.put(_interface(each, end_x, y, end_width))
        picture.lines.append(_across(pod, end))
        y = max(pod.bottom, end.bottom) + _BETWEEN
    if folded:
        words = f"Not drawn: {', '.join(each.subject for each in folded)}. The tables have all of them."
        lines = [f"{folded[0].subject} … {folded[-1].subject}"] if len(folded) > 1 else [folded[0].subject]
        pod = picture.put(Box("pod folded", x, y, width, plural(len(folded), "more pod"), lines, words))
        title = plural(len(folded), "more interface")
        end = picture.put(Box("interface folded", end_x, y, end_width, title, ["see the tables"], words))
        picture.lines.append(_across(pod, end))
        y = max(pod.bottom, end.bottom) + _BETWEEN
    return y


def _chosen(endpoints: Sequence[Interface]) -> tuple[list[Interface], list[Interface]]:
    """Return the endpoints that are drawn and the others: of many, those with the most reloads, and what is no pod."""
    if len(endpoints) <= MOST:
        return list(endpoints), []
    ordered = sorted(endpoints[:-1], key=lambda each: -each.loads)
    names = {each.name for each in (*ordered[: FOLDED_TO - 1], endpoints[-1])}
    return [each for each in endpoints if each.name in names], [each for each in endpoints if each.name not in names]


def _inside(endpoint: Interface) -> list[str]:
    inside = endpoint.inside
    if not inside:
        return []
    return [_facts(inside, named=True), *(address.partition("/")[0] for address in inside["addresses"])]


def _pod_words(endpoint: Interface) -> str:
    inside = endpoint.inside
    if not inside:
        return f"{endpoint.subject}, behind {endpoint.name}"
    addresses = ", ".join(inside["addresses"]) or "no address"
    return (
        f"{endpoint.subject}, a namespace of its own: {inside['name']}, index {inside['ifindex']}, "
        f"MTU {inside['mtu']}, {addresses}; pair with {endpoint.name} of the node"
    )


def _facts(facts: Any, *, named: bool = False) -> str:
    words = [facts["name"]] if named else [facts["kind"], str(facts["ifindex"])]
    return " · ".join([*words, f"MTU {facts['mtu']}", *(["down"] if not facts["up"] else [])])


def _options(facts: Any) -> list[str]:
    """Return what is special about a kind of interface, as lines."""
    if facts["parent"] is not None:
        return [f"on {facts['parent']}" if facts["vlan"] is None else f"id {facts['vlan']} on {facts['parent']}"]
    return [f"UDP port {facts['port']}"] if facts["port"] is not None else []


def _interface(interface: Interface, x: int, y: int, width: int) -> Box:
    facts = interface.facts
    lines = [_facts(facts), *_options(facts), *facts["addresses"]] if facts else []
    return Box("interface", x, y, width, interface.name, lines, interface.words, interface.hooks, interface.name)


def _devices(drawing: Drawing, picture: Picture, y: int) -> list[tuple[Interface, Box]]:
    """Put the node's own devices below each other, with lines between those that belong together."""
    x, width = picture.columns.devices
    found: list[tuple[Interface, Box]] = []
    for each in drawing.devices:
        if found and _are_pair(found[-1][0], each):
            y += _JOINED - _BETWEEN
        box = picture.put(_interface(each, x, y, width))
        if found and _are_pair(found[-1][0], each):
            picture.lines.append(Line("pair", f"M{x + width // 2} {found[-1][1].bottom}V{box.y}"))
        found.append((each, box))
        y = box.bottom + _BETWEEN
    by_name = {interface.name: box for interface, box in found}
    for interface, box in found:
        parent = by_name.get(interface.facts.get("parent") or "")
        if parent is not None:
            picture.lines.append(_beside(parent, box, narrow=picture.columns.is_narrow))
    return found


def _are_pair(one: Interface, other: Interface) -> bool:
    peer = one.facts.get("peer")
    return peer is not None and peer == {"namespace": "node", "name": other.name}


def _outside(drawing: Drawing, picture: Picture, devices: Sequence[tuple[Interface, Box]]) -> None:
    """Put what is outside beside the devices that lead there: other nodes, and the world."""
    tunnels = [box for interface, box in devices if interface.facts.get("kind") == "vxlan"]
    uplinks = [box for interface, box in devices if (interface.facts.get("peer") or {}).get("namespace") == "outside"]
    others = _others(drawing.others)
    if not drawing.outside and not others:
        return
    x, width = picture.columns.outside
    y = min((box.y for box in (*(tunnels if others else ()), *uplinks)), default=_TOP)
    nodes = []
    for title, lines, words in others:
        nodes.append(picture.put(Box("node", x, y, width, title, lines, words)))
        y = nodes[-1].bottom + _BETWEEN
    world = None
    if drawing.outside:
        y = max(y, *(box.y for box in uplinks), 0)
        lines = list(_world(drawing.outside))
        world = picture.put(Box("world", x, y, width, "outside", lines, _world_words(drawing.outside)))
    for tunnel in tunnels:
        picture.lines += [_elbow("tunnel", tunnel, node, picture.columns) for node in nodes]
    for uplink in uplinks:
        ends = [*nodes, *([world] if world else [])]
        picture.lines += [_elbow("pair", uplink, end, picture.columns) for end in ends]


def _others(others: Sequence[Other]) -> list[tuple[str, list[str], str]]:
    """Return title, lines and words of each node that is drawn; the last may stand for several."""
    shown = others if len(others) <= MOST_OTHERS else others[:OTHERS_FOLDED_TO]
    found = [(each.name, [*each.addresses, f"pods {each.pods[0]}"], each.words) for each in shown]
    if folded := others[len(shown) :]:
        words = "; ".join(each.words for each in folded)
        found.append((plural(len(folded), "more node"), [f"{folded[0].name} … {folded[-1].name}"], words))
    return found


def _world(links: Sequence[Any]) -> Iterator[str]:
    """Yield a line for each interface outside that has addresses, and for each of these."""
    for link in links:
        if link["addresses"]:
            yield _facts(link, named=True)
            yield from link["addresses"]


def _world_words(links: Sequence[Any]) -> str:
    told = (f"{link['name']} ({link['kind']}) {' '.join(link['addresses'])}".strip() for link in links)
    return f"The world outside, a namespace of its own: {', '.join(told)}"


def _across(left: Box, right: Box) -> Line:
    return Line("pair", f"M{left.right} {left.y + _PORT}H{right.x}")


def _beside(parent: Box, child: Box, *, narrow: bool) -> Line:
    """Return the line from a VLAN to its device, on the side on which nothing else leads away."""
    edge, way = (parent.right, parent.right + 8) if narrow else (parent.x, parent.x - 12)
    return Line("vlan", f"M{edge} {parent.y + _PORT}H{way}V{child.y + _PORT}H{edge}")


def _elbow(kind: str, device: Box, end: Box, columns: Columns) -> Line:
    """Return a line from a device to something outside, which turns twice if they are not at the same height.

    Lines of two kinds do not run on each other: those of tunnels are a little lower, and turn a little farther on.
    """
    start, stop = (device.x, end.right) if columns.is_narrow else (device.right, end.x)
    lower, aside = (6, 4) if kind == "tunnel" else (0, -4)
    y, target = device.y + _PORT + lower, end.y + _PORT + lower
    if y == target:
        return Line(kind, f"M{start} {y}H{stop}")
    return Line(kind, f"M{start} {y}H{(start + stop) // 2 + aside}V{target}H{stop}")

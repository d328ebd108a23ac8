"""What `reloadlab watch` shows: a picture of each node, or a JSON object."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datapath.reload.plans import OVERLAY_SUBJECT
from lab.abi import reasons
from lab.abi.layouts import direction_name
from lab.cli.tables import add_row, make_table
from lab.node.topology import HOST
from lab.system.words import plural
from lab.watch.following import Follower, Reloaded, drops, last_reload
from lab.watch.live import Hook, Interface, Look

_KEPT = 8
"""Reloads that stay in the picture."""
_FIGURES = ("in/s", "out/s", "drop/s", "id", "gen")
_WIDTH = 100
"""Columns that the whole table takes."""
_COLUMNS = ("interface", "of", *_FIGURES[:3], "hook", "program", *_FIGURES[3:], "age")


@dataclass(slots=True)
class Picture:
    """The picture of one node, which grows with every look: `take` one, then draw it or print it."""

    follower: Follower = field(default_factory=Follower)
    reloads: deque[Reloaded] = field(default_factory=lambda: deque(maxlen=_KEPT))
    fresh: tuple[Reloaded, ...] = ()
    seen: int = 0
    look: Look | None = None

    def take(self, look: Look) -> None:
        """Take over a look."""
        self.fresh = self.follower.follow(look)
        self.reloads.extend(self.fresh)
        self.seen += len(self.fresh)
        self.look = look

    def drawn(self, width: int) -> RenderableType:
        """Return the picture for a terminal of so many columns.

        What happens stands on top: the table below it may have more lines than the terminal.
        """
        return Group(*(Text(line, no_wrap=True) for line in self.lines()), self.table(narrow=width < _WIDTH))

    def lines(self) -> Iterator[str]:
        """Yield what stands above the table."""
        look = self._looked()
        loads = "nothing loaded" if look.loads is None else f"load {look.loads}"
        yield f"{look.lab}  {_clock(look.time_ns)}  {loads}  {self._packets(look)}"
        for key, count in sorted(drops(look.packets).items()):
            rate = self._rate(None if self.follower.rates is None else self.follower.rates.packets.get(key, 0.0))
            where = f"{reasons.describe(key[0])} ({direction_name(key[1])})"
            yield f"  dropped: {where}: {plural(int(count), 'packet')}{rate and f', {rate}/s'}"
        for each in look.under_way:
            pids = f" by process {', '.join(map(str, each.pids))}" if each.pids else ""
            yield f"  reload of {each.subject} under way{pids}"
        for done in self.reloads:
            yield f"  {_clock(done.at_ns)}  reload of {_told(done)}: {plural(len(done.programs), 'program')}"
        last = last_reload(look)
        if not self.reloads and last is not None:
            yield f"  last reload: {_told(last)}, {_clock(last.at_ns)}"
        yield ""

    def to_json(self) -> dict[str, Any]:
        """Return the look, the rates and the reloads since the look before as JSON values."""
        look = self._looked()
        rates, last = self.follower.rates, last_reload(look)
        values = asdict(look)
        del values["packets"], values["clock_ns"]
        for each in values["interfaces"]:
            for name, of in (("received", "received"), ("sent", "sent"), ("dropped", "dropped")):
                each[f"{name}_per_second"] = None if rates is None else _round(getattr(rates, of).get(each["name"]))
        values["packets"] = [
            {
                "reason": reason,
                "meaning": reasons.describe(reason),
                "direction": direction_name(direction),
                "packets": count,
                "per_second": None if rates is None else _round(rates.packets.get((reason, direction))),
            }
            for (reason, direction), count in sorted(look.packets.items())
        ]
        values["seconds"] = None if rates is None else round(rates.seconds, 6)
        values["reloads"] = [asdict(each) for each in self.fresh]
        values["last_reload"] = None if last is None else asdict(last)
        return values

    def _packets(self, look: Look) -> str:
        """Return the packets of cilium_metrics in words: a second, or in all after the first look."""
        rates = self.follower.rates
        counted: dict[tuple[int, int], float] = dict(look.packets if rates is None else rates.packets)
        lost = sum(drops(counted).values())
        unit = " in all" if rates is None else "/s"
        return f"forwarded {sum(counted.values()) - lost:.0f}{unit}, dropped {lost:.0f}{unit}"

    def table(self, *, narrow: bool = False) -> Table:
        """Return the interfaces and their hooks, a line each; `narrow`: one name for an interface and its subject."""
        table = make_table(*(_COLUMNS[:1] if narrow else _COLUMNS[:2]), *_COLUMNS[2:], figures=_FIGURES)
        if narrow:
            table.padding = (0, 1, 0, 0)
        now = self._looked().time_ns
        for interface in self._looked().interfaces:
            first = [*_names(interface, narrow=narrow), *self._rates(interface)]
            for number, hook in enumerate(interface.hooks):
                add_row(table, *(first if number == 0 else [" "] * len(first)), *_hook(hook, now))
            if not interface.hooks:
                add_row(table, *first, *["-"] * 5)
        return table

    def _rates(self, interface: Interface) -> list[str]:
        rates = self.follower.rates
        each = [] if rates is None else [rates.received, rates.sent, rates.dropped]
        return [self._rate(values.get(interface.name)) for values in each] or ["", "", ""]

    def _rate(self, value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}"

    def _looked(self) -> Look:
        if self.look is None:
            raise ValueError("a picture without a look")
        return self.look


def _names(interface: Interface, *, narrow: bool) -> list[str]:
    own = interface.subject not in (HOST, OVERLAY_SUBJECT)
    name = interface.subject if narrow and own else interface.name
    shown = name if interface.up else f"{name} (down)"
    return [shown] if narrow else [shown, interface.subject]


def _hook(hook: Hook, now_ns: int) -> list[str]:
    generation = "" if hook.generation is None else str(hook.generation)
    age = "" if not hook.loaded_ns else _age((now_ns - hook.loaded_ns) / 1e9)
    return [hook.hook, hook.program, str(hook.program_id), generation, age]


def _told(reloaded: Reloaded) -> str:
    return reloaded.subject + ("" if reloaded.generation is None else f", generation {reloaded.generation}")


def _clock(at_ns: int) -> str:
    """Return the local time of day with milliseconds."""
    return f"{time.strftime('%H:%M:%S', time.localtime(at_ns // 10**9))}.{at_ns // 10**6 % 1000:03}"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)

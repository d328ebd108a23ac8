"""The account of one direction of a flow: which packets are under way, and what came of the rest."""

from __future__ import annotations

from lab.traffic.report import Direction, Event, LostPacket


class Way:
    """One direction of a flow."""

    __slots__ = ("_first_hops", "_highest", "errors", "events", "name", "under_way")

    def __init__(self, name: Direction) -> None:
        self.name = name
        self.under_way: dict[int, int] = {}
        self.errors: dict[int, str] = {}
        self.events: list[Event] = []
        self._highest = -1
        self._first_hops = -1

    def arrived(self, number: int, hops: int) -> int | None:
        """Account for a packet and return when it was sent; None if it is not the first of its number."""
        sent_ns = self.under_way.pop(number, None)
        if sent_ns is None:
            return None
        if number < self._highest:
            self.events.append(Event("reordered", sent_ns))
        else:
            self._highest = number
        if hops != self._first_hops:
            if self._first_hops < 0:
                self._first_hops = hops
            else:
                self.events.append(Event("detour", sent_ns))
        return sent_ns

    def idle(self, since_ns: int) -> bool:
        """Tell whether everything that was sent after `since_ns` has arrived."""
        return all(at < since_ns for at in self.under_way.values())

    def lost(self) -> list[LostPacket]:
        """Return what is still under way, as lost."""
        return [LostPacket(n, at, self.name, self.errors.get(n, "")) for n, at in self.under_way.items()]

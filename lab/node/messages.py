"""The message classes of pyroute2, imported when the first message is made: that takes longer than many a command."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class MessageClass:
    """A class of pyroute2.netlink.rtnl, by name; called like the class itself."""

    name: str

    def __call__(self, *data: bytes) -> Any:
        """Return a new message, or the one that `data` holds."""
        module = import_module(f"pyroute2.netlink.rtnl.{self.name}")
        return getattr(module, self.name)(*data)


ifaddrmsg = MessageClass("ifaddrmsg")
ifinfmsg = MessageClass("ifinfmsg")
rtmsg = MessageClass("rtmsg")

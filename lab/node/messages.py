"""Netlink messages by pyroute2, for what is made once or listed, and not on the path of a reload.

pyroute2 is imported when the first message is made: that takes longer than many a command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from datapath.kernel.netlink import NLM_F_REQUEST


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


def encode(
    kind: MessageClass, message_type: int, flags: int, fields: Mapping[str, Any], attrs: Sequence[tuple[str, Any]]
) -> bytes:
    """Return the bytes of a request of class `kind`; nested attributes as ("NAME", {"attrs": [...]})."""
    message = kind()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attrs)
    message["header"]["type"] = message_type
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message.encode()
    return bytes(message.data)


def decode(kind: MessageClass, messages: Sequence[bytes]) -> list[Any]:
    """Return the messages, which are of class `kind`, decoded; slow (0.1-0.3 ms each), for listings."""
    decoded = [kind(message) for message in messages]
    for message in decoded:
        message.decode()
    return decoded

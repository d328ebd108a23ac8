"""Netlink messages by pyroute2, for what is made once, and not on the path of a reload.

pyroute2 is imported when the first message is made, and no more of it than that takes: all of it, with asyncio and
databases, takes longer than many a command.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from datapath.kernel.netlink import NLM_F_REQUEST


@dataclass(frozen=True, slots=True)
class MessageClass:
    """A class of pyroute2.netlink.rtnl, by name; called like the class itself."""

    name: str

    def __call__(self, *data: bytes) -> Any:
        """Return a new message, or the one that `data` holds."""
        _prepare()
        module = import_module(f"pyroute2.netlink.rtnl.{self.name}")
        return getattr(module, self.name)(*data)


class _Package(ModuleType):
    """A package whose own code runs when something is asked of it that no module in it is called."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__path__, self.__file__ = spec, list(spec.submodule_search_locations or ()), spec.origin
        self._lock, self._begun = threading.RLock(), False

    def __getattr__(self, name: str) -> Any:
        inside = f"{self.__name__}.{name}"
        if find_spec(inside) is not None:
            return import_module(inside)
        with self._lock:
            if not self._begun:
                self._begun = True
                self._run()
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def _run(self) -> None:
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        try:
            self.__spec__.loader.exec_module(self)
        except BaseException:
            self._begun = False
            raise


def _prepare() -> None:
    """Have pyroute2 without its own code, which imports all of it, unless somebody has imported it."""
    if "pyroute2" not in sys.modules:
        spec = find_spec("pyroute2")
        assert spec is not None
        sys.modules.setdefault("pyroute2", _Package(spec))


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

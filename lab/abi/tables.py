"""The maps that control plane and programs share, in the layout that each map has: the kernel knows its types.

A map that the kernel knows no types of has the layout of our own sources, perhaps with words appended: our loader tells
the types of all other maps (`DatapathConfig.library`), as those of Cilium and libbpf do of any. So nobody but this
module has to know whose programs are loaded, and no release has a name here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from datapath.base import mapnames
from datapath.kernel.map import Map
from datapath.kernel.uapi import MapTypes
from datapath.load.layout import types_of
from lab.abi.conntrack import CtEntry, CtTuple
from lab.abi.layouts import (
    EndpointInfo,
    EndpointKey,
    IpcacheKey,
    MetricsKey,
    MetricsValue,
    RemoteEndpointInfo,
    TunnelKey,
    TunnelValue,
)
from lab.abi.others import (
    AuthInfo,
    AuthKey,
    L2ResponderKey,
    L2ResponderStats,
    NodeKey,
    NodeValue,
    RateLimit,
    RateLimitKey,
    RateLimitMetrics,
    RateLimitMetricsKey,
)
from lab.abi.policymap import PolicyEntry, PolicyKey, PolicyStats, PolicyStatsKey
from lab.abi.record import Described, Fields, Packed, Record, UnknownLayout

_OF_OTHERS = (mapnames.POLICY_V2, mapnames.IPCACHE_V2)
"""Beginnings of names that our own sources do not have: without types nothing tells the layout of these maps."""

K = TypeVar("K", bound=Described)
V = TypeVar("V", bound=Described)
P = TypeVar("P", bound=Packed)
Q = TypeVar("Q", bound=Packed)


@dataclass(frozen=True, slots=True)
class Codec(Generic[V]):
    """Packs and unpacks the keys or values of one map. `record` is None for our own layout.

    Fields that the layout lacks are left out when a value is packed, and are as by default when it is unpacked.
    """

    pack: Callable[[V], bytes]
    unpack: Callable[[bytes], V]
    record: Record | None

    def place(self, field: str) -> int | None:
        """Return where a field lies, by our name, in bytes; None if it is not there, or the layout is our own."""
        if self.record is None or field not in self.record.fields:
            return None
        return self.record.fields[field][0] // 8


@dataclass(frozen=True, slots=True)
class Table(Generic[K, V]):
    """The layout of one map."""

    key: Codec[K]
    value: Codec[V]

    def items(self, opened: Map) -> Iterator[tuple[K, V]]:
        """Yield keys and values of a map of this layout."""
        return ((self.key.unpack(key), self.value.unpack(value)) for key, value in opened.items())


@dataclass(frozen=True, slots=True)
class Kind(Generic[P, Q]):
    """What keys and values of a map mean, whatever its layout is."""

    key: type[P]
    value: type[Q]

    def of(self, opened: Map) -> Table[P, Q]:
        """Return the layout that a map has; UnknownLayout if it is none that the lab knows."""
        types = opened.info.types
        if types is None and opened.name.startswith(_OF_OTHERS):
            raise _untold(opened, self.value)
        key, value = (None, None) if types is None else records_of(types)
        return Table(
            _codec(opened.name, self.key, opened.info.key_size, key),
            _codec(opened.name, self.value, opened.info.value_size, value),
        )


@dataclass(frozen=True, slots=True)
class OfOthers(Generic[K, V]):
    """The same of a map that our own sources lack: without types nothing tells its layout."""

    key: type[K]
    value: type[V]

    def of(self, opened: Map) -> Table[K, V]:
        """Return the layout that a map has; UnknownLayout if it is none that the lab knows."""
        types = opened.info.types
        if types is None:
            raise _untold(opened, self.value)
        key, value = records_of(types)
        return Table(
            _by_fields(self.key, self.key.KNOWN.bind(opened.name, key)),
            _by_fields(self.value, self.value.KNOWN.bind(opened.name, value)),
        )


def _untold(opened: Map, value: type[Described]) -> UnknownLayout:
    return UnknownLayout(opened.name, value.__name__, ("no types, and our own sources have no such map",))


ENDPOINTS = Kind(EndpointKey, EndpointInfo)
IDENTITIES = Kind(IpcacheKey, RemoteEndpointInfo)
TUNNELS = Kind(TunnelKey, TunnelValue)
POLICY = Kind(PolicyKey, PolicyEntry)
POLICY_STATS = Kind(PolicyStatsKey, PolicyStats)
CONNECTIONS = Kind(CtTuple, CtEntry)
METRICS = Kind(MetricsKey, MetricsValue)
NODES = OfOthers(NodeKey, NodeValue)
AUTHENTICATIONS = OfOthers(AuthKey, AuthInfo)
ANNOUNCEMENTS = OfOthers(L2ResponderKey, L2ResponderStats)
RATE_LIMITS = OfOthers(RateLimitKey, RateLimit)
RATE_LIMIT_METRICS = OfOthers(RateLimitMetricsKey, RateLimitMetrics)


@lru_cache(maxsize=1024)
def records_of(types: MapTypes) -> tuple[Record, Record]:
    """Return the structs of a map's key and value. The kernel gives no id of BTF twice."""
    found = types_of(types.btf)
    return Record.of_type(found, types.key), Record.of_type(found, types.value)


def _codec(name: str, kind: type[P], size: int, record: Record | None) -> Codec[P]:
    if record is not None:
        return _by_fields(kind, kind.KNOWN.bind(name, record))
    if size < kind.SIZE:
        few = f"{size} bytes without types are less than the {kind.SIZE} of our own"
        raise UnknownLayout(name, kind.__name__, (few,))
    return Codec(lambda value: value.pack().ljust(size, b"\0"), kind.unpack, None)


def _by_fields(kind: type[V], record: Record) -> Codec[V]:
    def pack(value: V) -> bytes:
        return record.pack({name: each for name, each in value.values().items() if name in record.fields})

    return Codec(pack, lambda data: kind.of_fields(Fields(record, data)), record)

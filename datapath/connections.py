"""Connections across the replacement of the maps that keep them.

A map that became incompatible is replaced by the first reload that needs it, with its content. All other endpoints go
on with the old one until they are reloaded themselves, and so do the programs of that reload until they are attached:
what they note meanwhile, nobody else sees. So each endpoint's reload carries over what its old programs have noted.
(The reference copies nothing: every connection is a new one then, and its answers meet the policy.)
"""

from __future__ import annotations

import errno
import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from datapath import syscall
from datapath.content import can_copy, put
from datapath.errors import BpfError
from datapath.maps import Map

CONNECTIONS = "cilium_ct"
"""What the names of the maps of connections begin with."""

_FILE = "connections"
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; Python's time module does not name it
_LIFETIME = struct.Struct("<32xI")


def lifetime_of(value: bytes) -> int:
    """Return until when an entry holds (struct ct_entry: lifetime), in seconds of the monotonic clock."""
    (lifetime,) = _LIFETIME.unpack_from(value)
    return int(lifetime)


def seconds() -> int:
    """Return the time of bpf_ktime_get_coarse_ns(): the datapath's, or Cilium's own by a tick at most behind it."""
    return time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE) // 1_000_000_000


def remember(directory: Path, maps: Mapping[str, Map]) -> None:
    """Note in an endpoint's directory which maps of connections its programs use from now on."""
    used = _ids(maps)
    if used and used != _remembered(directory):
        upcoming = directory / f"{_FILE}.new"
        upcoming.write_text(json.dumps(used))
        upcoming.replace(directory / _FILE)


def carry_over(directory: Path, maps: Mapping[str, Map]) -> None:
    """Bring into `maps` what the endpoint's programs have noted in those that they used until now."""
    used = _ids(maps)
    if not used:
        return
    for name, ident in _remembered(directory).items():
        if name in used and ident != used[name]:
            _merge(ident, maps[name])


def _merge(ident: int, new: Map) -> None:
    """Copy what is alive from the map of that id, unless it is gone; of two entries the one that lives longer stays."""
    try:
        fd = syscall.map_fd_by_id(ident)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return
    with Map(fd, new.name, syscall.map_info(fd)) as old:
        if not can_copy(old, new):
            return
        now = seconds()
        for key, value in old.items():
            lifetime = lifetime_of(value)
            there = new.lookup(key) if lifetime >= now else value
            if there is None or lifetime_of(there) < lifetime:
                put(new, key, value)


def _ids(maps: Mapping[str, Map]) -> dict[str, int]:
    return {name: item.info.id for name, item in maps.items() if name.startswith(CONNECTIONS)}


def _remembered(directory: Path) -> dict[str, int]:
    try:
        return dict(json.loads((directory / _FILE).read_text()))
    except FileNotFoundError:
        return {}

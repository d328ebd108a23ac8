"""A map by its open descriptor, a pin of our own making, and the cache of open shared maps."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.base.bpftypes import HASH_TYPES, PERCPU_TYPES, MapType
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.cpus import possible_cpus
from datapath.kernel.uapi import MapInfo

_BATCH = 4096
"""Entries that one system call reads."""

_FIRST_BATCH = 64
"""Entries that the first one reads: most maps have fewer, and room for more costs more than reading them."""

_A_MAP = "anon_inode:bpf-map"
"""What the kernel calls the descriptor of a map; programs and links have other names (kernel/bpf/syscall.c)."""


@dataclass(frozen=True, slots=True)
class Map:
    """A map by its open descriptor. Values are the kernel's bytes: a per-CPU value is that of all possible CPUs."""

    fd: int
    name: str
    info: MapInfo

    @classmethod
    def of(cls, fd: int, name: str) -> Self:
        """Take over an open descriptor: it is closed if the kernel does not describe the map."""
        try:
            return cls(fd, name, bpf.map_info(fd))
        except BaseException:
            os.close(fd)
            raise

    @property
    def value_bytes(self) -> int:
        """Bytes that the kernel reads or writes as one value."""
        if self.info.type in PERCPU_TYPES:
            return round_up(self.info.value_size, 8) * possible_cpus()
        return self.info.value_size

    def lookup(self, key: bytes) -> bytes | None:
        return bpf.map_lookup(self.fd, key, self.value_bytes)

    def lookup_percpu(self, key: bytes) -> list[bytes]:
        """Return the value on every possible CPU; an empty list if there is none."""
        value = self.lookup(key)
        return [] if value is None else self._of_cpus(value)

    def items_percpu(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yield keys and their values on every possible CPU, as `items` does."""
        for key, value in self.items():
            yield key, self._of_cpus(value)

    def _of_cpus(self, value: bytes) -> list[bytes]:
        size = self.info.value_size
        return [value[at : at + size] for at in range(0, len(value), round_up(size, 8))]

    def update(self, key: bytes, value: bytes, *, flags: int = bpf.BPF_ANY) -> None:
        if len(key) != self.info.key_size or len(value) != self.value_bytes:
            raise ValueError(f"map {self.name}: key of {len(key)} and value of {len(value)} bytes do not fit it")
        bpf.map_update(self.fd, key, value, flags=flags)

    def delete(self, key: bytes) -> bool:
        """Delete a key; False if it was not there."""
        return bpf.map_delete(self.fd, key)

    def keys(self) -> Iterator[bytes]:
        """Yield the keys; those that come or go meanwhile may or may not be among them."""
        if self._is_read_by_batches:
            yield from (key for key, _ in self._batches())
            return
        key = bpf.map_next_key(self.fd, None, self.info.key_size)
        while key is not None:
            yield key
            key = bpf.map_next_key(self.fd, key, self.info.key_size)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values; a program array's values are program ids.

        What comes or goes meanwhile may or may not be among them; nothing that stays is left out of a hash.
        """
        if self._is_read_by_batches:
            yield from self._batches()
            return
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    @property
    def _is_read_by_batches(self) -> bool:
        return self.info.type in HASH_TYPES and bpf.has_lookup_batch()

    def _batches(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the content of a hash bucket by bucket: several times faster than by key, and without starting over
        when a key vanishes on the way.
        """
        cursor, room = None, min(_FIRST_BATCH, self.info.max_entries)
        while True:
            try:
                found, cursor = bpf.map_lookup_batch(self.fd, cursor, self.info.key_size, self.value_bytes, room)
            except BpfError as error:
                if error.errno != errno.ENOSPC:
                    raise
                room *= 2
                continue
            yield from found
            if cursor is None:
                return
            room = max(room, min(_BATCH, self.info.max_entries))

    def pin(self, path: Path) -> None:
        bpf.obj_pin(self.fd, path)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class CreatedPin:
    """A pin that a load made; `map_id` tells it from what somebody else may have pinned there since."""

    path: Path
    map_id: int

    def remove(self) -> bool:
        """Remove the pin if it still leads to our map; tells whether it did."""
        try:
            with open_pin(self.path) as pinned:
                if pinned.info.id != self.map_id:
                    return False
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        self.path.unlink(missing_ok=True)
        return True


@dataclass(slots=True)
class CacheEntry:
    """An open map of a MapCache; `users` counts who has it now, `stale` says that its pin has changed."""

    map: Map
    inode: tuple[int, int]
    users: int = 0
    stale: bool = False


class MapCache:
    """Open descriptors of shared pinned maps, kept between loads; safe for threads.

    An entry counts only while the pin is the same inode. Program arrays are never kept: an open descriptor would keep
    one filled that the kernel has to empty (its last user reference), and so hide what a faulty reload does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, CacheEntry] = {}
        self._infos: dict[str, tuple[tuple[int, int], MapInfo]] = {}

    def acquire(self, path: str) -> tuple[Map, CacheEntry | None]:
        """Open the map pinned at `path`, or hand out the open one; FileNotFoundError if nothing is pinned there.

        With an entry the descriptor belongs to the cache and is given back by `release`; without, to the caller.
        """
        inode = _inode(path)
        with self._lock:
            entry = self._entries.get(path)
            if entry is not None and entry.inode == inode:
                entry.users += 1
                return entry.map, entry
            if entry is not None:
                self._retire(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        opened = _open(path)
        if opened.info.type == MapType.PROG_ARRAY:
            return opened, None
        with self._lock:
            if path in self._entries or _inode(path) != inode:
                return opened, None
            entry = self._entries[path] = CacheEntry(opened, inode, users=1)
        return opened, entry

    def info(self, path: str) -> MapInfo | None:
        """Describe the map pinned at `path`; None if nothing is pinned there."""
        inode = _inode(path)
        if inode is None:
            return None
        known = self._infos.get(path)
        if known is None or known[0] != inode:
            try:
                with self.borrow(Path(path)) as opened:
                    known = inode, opened.info
            except FileNotFoundError:
                return None
            if _inode(path) == inode:
                self._infos[path] = known
        return known[1]

    def release(self, entry: CacheEntry) -> None:
        """Give back what `acquire` handed out."""
        with self._lock:
            entry.users -= 1
            if entry.stale and not entry.users:
                entry.map.close()

    @contextmanager
    def borrow(self, path: Path) -> Iterator[Map]:
        """Open the map pinned at `path` for the time of a block; FileNotFoundError if nothing is pinned there."""
        opened, entry = self.acquire(str(path))
        try:
            yield opened
        finally:
            if entry is None:
                opened.close()
            else:
                self.release(entry)

    def forget(self, paths: Iterable[str]) -> None:
        """Keep nothing of the maps that were pinned at `paths`; what is in use is closed when it is given back."""
        with self._lock:
            for path in paths:
                self._infos.pop(path, None)
                if path in self._entries:
                    self._retire(path)

    def close(self) -> None:
        """Close what nobody uses now; what is in use is closed when it is given back."""
        with self._lock:
            for path in list(self._entries):
                self._retire(path)

    def _retire(self, path: str) -> None:
        entry = self._entries.pop(path)
        entry.stale = True
        if not entry.users:
            entry.map.close()


def open_pin(path: Path, name: str | None = None) -> Map:
    """Open a pinned map; BpfError with ENOENT if nothing is pinned at `path`."""
    return Map.of(bpf.obj_get(path), path.name if name is None else name)


def pinned_maps(directory: Path) -> Iterator[Map]:
    """Open the maps pinned in a directory one after the other, in the order of their names, each until the next one.

    Directories, programs and links, which others may keep beside them, are left out; so is a pin that goes meanwhile.
    """
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_dir():
            continue
        try:
            fd = bpf.obj_get(path)
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            continue
        if os.readlink(f"/proc/self/fd/{fd}") != _A_MAP:
            os.close(fd)
            continue
        with Map.of(fd, path.name) as opened:
            yield opened


def _open(path: str) -> Map:
    try:
        return open_pin(Path(path))
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        raise FileNotFoundError(error.errno, os.strerror(error.errno), path) from error


def _inode(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than `number`."""
    return (number + multiple - 1) // multiple * multiple

"""Reads what programs write into a perf event array: one ring for each CPU, looked at after the fact."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fcntl import ioctl

from datapath.kernel.libc import check, function
from datapath.kernel.map import Map

_SYSCALL = {"x86_64": 298, "aarch64": 241}[platform.machine()]
_SOFTWARE, _BPF_OUTPUT, _SAMPLE_RAW, _ENABLE, _RECORD_SAMPLE = 1, 10, 1 << 10, 0x2400, 9
_PAGE = mmap.PAGESIZE
_PAGES = 16
_syscall = function("syscall")
_HEAD = 1024  # struct perf_event_mmap_page: data_head


@dataclass(frozen=True, slots=True)
class Events:
    """The rings, filled from the moment they are opened."""

    rings: tuple[mmap.mmap, ...]

    def read(self) -> list[bytes]:
        """Return all messages since the opening, packet data included; at most what fits into the rings."""
        return [message for ring in self.rings for message in _messages(ring)]


@contextmanager
def opened(array: Map) -> Iterator[Events]:
    """Listen on every CPU."""
    with ExitStack() as stack:
        rings = []
        for cpu in range(os.cpu_count() or 1):
            attr = struct.pack("<IIQQQQQQI", _SOFTWARE, 112, _BPF_OUTPUT, 1, _SAMPLE_RAW, 0, 0, 0, 1).ljust(112, b"\0")
            fd = check(_syscall(_SYSCALL, ctypes.create_string_buffer(attr, 112), -1, cpu, -1, 8), "perf_event_open")
            stack.callback(os.close, fd)
            rings.append(stack.enter_context(mmap.mmap(fd, _PAGE * (1 + _PAGES))))
            array.update(cpu.to_bytes(4, "little"), fd.to_bytes(4, "little"))
            ioctl(fd, _ENABLE, 0)
        yield Events(tuple(rings))


def _messages(ring: mmap.mmap) -> Iterator[bytes]:
    (head,) = struct.unpack_from("<Q", ring, _HEAD)
    assert head <= _PAGE * _PAGES, "more events than the ring holds"
    at = _PAGE
    while at < _PAGE + head:
        kind, _, size = struct.unpack_from("<IHH", ring, at)
        if kind == _RECORD_SAMPLE:
            (length,) = struct.unpack_from("<I", ring, at + 8)
            yield ring[at + 12 : at + 12 + length]
        at += size

"""Perf rings: one for each CPU, into which programs write with bpf_perf_event_output(2), and which we empty.

perf_event_open(2) and its mapped page as in include/uapi/linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from datapath.errors import BpfError, ReloadlabError
from datapath.kernel.cpus import ONLINE, cpu_list
from datapath.kernel.libc import function
from datapath.kernel.map import Map

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_TYPE_SOFTWARE, _COUNT_SW_BPF_OUTPUT, _SAMPLE_TIME, _SAMPLE_RAW = 1, 10, 1 << 2, 1 << 10
_FORMAT_LOST = 1 << 4
_USE_CLOCKID, _CLOCK_MONOTONIC = 1 << 25, 1
_FLAG_FD_CLOEXEC = 1 << 3
_IOC_ENABLE = 0x2400
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
_HEAD, _TAIL = 1024, 1032
_RECORD, _SAMPLE = struct.Struct("<IHH"), struct.Struct("<QI")
_COUNTS = struct.Struct("<QQ")
"""What read(2) of an event with PERF_FORMAT_LOST returns: its count, which is 0 here, and the lost messages."""
_ATTR_SIZE = 112

PAGES = 64
"""Pages of a ring, a power of two: 256 KiB, about 1,500 messages with their packets."""

_LONG, _INT = ctypes.c_long, ctypes.c_int
_perf_event_open = function("syscall", _LONG, ctypes.c_void_p, _INT, _INT, _INT, ctypes.c_ulong, result=_LONG)


class RingDamaged(ReloadlabError):
    """A ring that holds something else than records: somebody has written into it, or it was not read as it must."""

    def __init__(self, cpu: int, size: int) -> None:
        super().__init__(f"perf ring of CPU {cpu}: a record of {size} bytes")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a program wrote, with up to seven bytes of padding at its end; empty with `lost` messages instead.

    `time_ns` is when it was written (CLOCK_MONOTONIC).
    """

    cpu: int
    data: bytes
    lost: int = 0
    time_ns: int = 0


class _Ring:
    def __init__(self, cpu: int, pages: int, *, wakes: bool) -> None:
        self.cpu = cpu
        self.fd = _open(cpu, wakes=wakes)
        try:
            self._map = mmap.mmap(self.fd, (1 + pages) * mmap.PAGESIZE)
        except OSError:
            os.close(self.fd)
            raise
        self._size = pages * mmap.PAGESIZE
        self._told = 0
        # Read and written at once: of bytes that come one after the other the kernel would see half.
        self._head = ctypes.c_uint64.from_buffer(self._map, _HEAD)
        self._tail = ctypes.c_uint64.from_buffer(self._map, _TAIL)

    @property
    def lost(self) -> int:
        """Messages that did not fit, by the kernel's count; before Linux 6.0 those that records have told of."""
        counted = os.read(self.fd, _COUNTS.size)
        return _COUNTS.unpack(counted)[1] if len(counted) == _COUNTS.size else self._told

    def enable(self) -> None:
        fcntl.ioctl(self.fd, _IOC_ENABLE, 0)

    def read(self) -> Iterator[Sample]:
        """Yield what is there; room is given back record by record."""
        head, tail = self._head.value, self._tail.value
        while tail < head:
            kind, _, size = _RECORD.unpack(self._at(tail, _RECORD.size))
            if not _RECORD.size <= size <= head - tail:
                raise RingDamaged(self.cpu, size)
            record = self._at(tail + _RECORD.size, size - _RECORD.size)
            tail += size
            self._tail.value = tail
            if kind == _RECORD_SAMPLE:
                written, length = _SAMPLE.unpack_from(record)
                yield Sample(self.cpu, record[_SAMPLE.size : _SAMPLE.size + length], time_ns=written)
            elif kind == _RECORD_LOST:
                lost: int = struct.unpack_from("<QQ", record)[1]
                self._told += lost
                yield Sample(self.cpu, b"", lost)

    def _at(self, position: int, length: int) -> bytes:
        """Return bytes of the ring, which may go on at its beginning."""
        start = position % self._size
        first = min(length, self._size - start)
        begin = mmap.PAGESIZE + start
        return self._map[begin : begin + first] + self._map[mmap.PAGESIZE : mmap.PAGESIZE + length - first]

    def close(self) -> None:
        # A map of memory that is still looked into cannot be closed.
        del self._head, self._tail
        self._map.close()
        os.close(self.fd)


class PerfReader:
    """The rings of a perf event array, for the time of a block.

    With `wakes`, each message ends the wait of `read`. A reader that comes by itself does without: it spares writers
    an interrupt for each message.

    The kernel takes them out of the map again when the descriptor of `target` is closed, which must therefore stay
    open that long. Whoever listened to the same map before hears nothing any more.
    """

    def __init__(self, target: Map, *, pages: int = PAGES, wakes: bool = True) -> None:
        self._target = target
        self._pages = pages
        self._wakes = wakes
        self._stack = ExitStack()
        self._rings: list[_Ring] = []
        self._poll = select.poll()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for cpu in sorted(os_cpus()):
                if cpu >= self._target.info.max_entries:
                    break
                ring = _Ring(cpu, self._pages, wakes=self._wakes)
                stack.callback(ring.close)
                self._target.update(cpu.to_bytes(4, "little"), ring.fd.to_bytes(4, "little"))
                stack.callback(self._target.delete, cpu.to_bytes(4, "little"))
                ring.enable()
                self._rings.append(ring)
                self._poll.register(ring.fd, select.POLLIN)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @property
    def lost(self) -> int:
        """Messages that did not fit until now. A record in the ring tells of them too, with the next one that fits.

        The kernel asks each CPU for its count, which costs more than a `read`.
        """
        return sum(ring.lost for ring in self._rings)

    def read(self, timeout: float) -> list[Sample]:
        """Return what has been written; waits at most `timeout` seconds for the first of it."""
        self._poll.poll(round(timeout * 1000))
        return [sample for ring in self._rings for sample in ring.read()]


def os_cpus() -> set[int]:
    """Return the CPUs that are online."""
    return set(cpu_list(ONLINE))


def _open(cpu: int, *, wakes: bool) -> int:
    try:
        return _open_counting(cpu, _FORMAT_LOST, wakes=wakes)
    except BpfError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.0
            raise
    return _open_counting(cpu, 0, wakes=wakes)


def _open_counting(cpu: int, read_format: int, *, wakes: bool) -> int:
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise BpfError("perf_event_open", 0, f"its number on {os.uname().machine} is not known here")
    sample = _SAMPLE_TIME | _SAMPLE_RAW
    attributes = struct.pack("<IIQQQ", _TYPE_SOFTWARE, _ATTR_SIZE, _COUNT_SW_BPF_OUTPUT, 1, sample)
    # From here to wakeup_events: flags; then how many messages wake the reader up, 0 for half a ring; far behind, the
    # clock.
    attributes += struct.pack("<QQI40xi", read_format, _USE_CLOCKID, int(wakes), _CLOCK_MONOTONIC)
    buffer = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
    fd = int(_perf_event_open(number, buffer, -1, cpu, -1, _FLAG_FD_CLOEXEC))
    if fd < 0:
        code = ctypes.get_errno()
        raise BpfError("perf_event_open", code, f"CPU {cpu}: {os.strerror(code)}")
    return fd

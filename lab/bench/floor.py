"""The floor of a reload: the system calls that every reload needs, one after the other, with everything prepared.

Descriptors of shared maps are open, instructions are bound, attributes and messages are encoded. What is left is to
repin the old calls map, create and pin the new one (and create the maps that are not pinned), load the programs, fill
the slots, replace the filters in one netlink message, and unpin the old map.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datapath.base.mapnames import is_calls_map
from datapath.errors import BpfError, ReloadlabError
from datapath.kernel import hooks
from datapath.kernel.bpf import SYS_BPF
from datapath.kernel.hooks import Direction
from datapath.kernel.libc import function
from datapath.kernel.map import open_pin
from datapath.kernel.netns import enter
from datapath.kernel.pins import PENDING
from datapath.kernel.uapi import Cmd
from datapath.load.maps import max_entries
from datapath.load.programs import bind, data_words
from datapath.object.spec import CollectionSpec, MapSpec

_CREATE = struct.Struct("=7I16s")
_LOAD = struct.Struct("=2IQQ2IQ2I16s")
_ELEM = struct.Struct("=IxxxxQQQ")
_PIN = struct.Struct("=Q2I")
_MARKER = 0x7A7A7A7A

_bpf = function("syscall", ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, result=ctypes.c_long)


class FloorUnavailable(ReloadlabError):
    """The bare system calls cannot be prepared for this object; str() says why."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A program and the direction in which it is attached."""

    program: str
    direction: Direction


@dataclass(slots=True)
class _Call:
    """One call of bpf(2) with its attribute; `kept` are the buffers to which the attribute points."""

    cmd: int
    attr: ctypes.Array[ctypes.c_char]
    what: str
    kept: tuple[Any, ...] = ()

    def __call__(self) -> int:
        result: int = _bpf(SYS_BPF, self.cmd, self.attr, len(self.attr))
        if result < 0:
            number = ctypes.get_errno()
            raise BpfError(f"BPF_{Cmd(self.cmd).name}", number, f"{self.what}: {os.strerror(number)}")
        return result


@dataclass(slots=True)
class _Load:
    """A program without the descriptors of new maps: `refs` are (index of a 32-bit word, number of the new map)."""

    call: _Call
    words: memoryview
    refs: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Slot:
    """A slot of a program array and the buffer for the descriptor of `program`; `is_calls`: of the new calls map."""

    call: _Call
    value: ctypes.Array[ctypes.c_char]
    program: int
    is_calls: bool


class Floor:
    """A context manager: entering it prepares everything, `run` makes the calls. The object must have been loaded once.

    `spec` is the endpoint's substituted specification; its maps are pinned in `pin_dir`.
    """

    def __init__(self, spec: CollectionSpec, pin_dir: Path, netns: Path, ifname: str, at: tuple[Hook, ...]) -> None:
        calls = [m for m in spec.maps.values() if is_calls_map(m.name)]
        if len(calls) > 1:
            raise FloorUnavailable(f"{spec.path} has {len(calls)} calls maps: the floor migrates one at most")
        unusual = [m.name for m in spec.maps.values() if m.name in spec.sections or m.replace_pin or m.needs_types]
        if unusual:
            raise FloorUnavailable(
                f"{spec.path}: map {unusual[0]} needs more than the bare calls: variables, types or a new pin"
            )
        self._spec = spec
        # The pipeline does not migrate a calls map of another name either.
        self._calls = calls[0] if calls else None
        self._pin = str(pin_dir / calls[0].name) if calls else ""
        self._pin_dir, self._netns = pin_dir, netns
        self._ifname, self._hooks = ifname, at
        self._stack = ExitStack()
        self._socket: socket.socket

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            shared = [m for m in self._spec.maps.values() if m.pinned and m is not self._calls]
            fds = {m.name: stack.enter_context(open_pin(self._pin_dir / m.name)).fd for m in shared}
            with enter(self._netns):
                self._socket = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
                ifindex = socket.if_nametoindex(self._ifname)
            self._socket.bind((0, 0))
            self._prepare(fds, ifindex)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def _prepare(self, fds: dict[str, int], ifindex: int) -> None:
        spec = self._spec
        new = [m for m in spec.maps.values() if m is self._calls or not m.pinned]
        new.sort(key=lambda item: item is not self._calls)
        self._creates = [_create(item) for item in new]
        name = ctypes.create_string_buffer(self._pin.encode())
        pin = _PIN.pack(ctypes.addressof(name), 0, 0)
        self._pin_new = _Call(Cmd.OBJ_PIN, ctypes.create_string_buffer(pin, len(pin)), self._pin, (name,))
        self._loads = self._bound_programs(fds, [item.name for item in new])
        order = {program: index for index, program in enumerate(spec.programs)}
        self._slots = [
            _slot(fds.get(item.name), slot, order[program], item.name)
            for item in spec.maps.values()
            for slot, program in item.contents.items()
            if program in order
        ]
        self._messages = bytearray()
        self._fd_places: list[tuple[int, int]] = []
        for number, hook in enumerate(self._hooks, 1):
            message = bytearray(
                hooks.attach_message(
                    ifindex,
                    hook.direction,
                    program_fd=_MARKER,
                    name=hooks.filter_name(hook.program, self._ifname),
                    priority=1,
                )
            )
            struct.pack_into("=H", message, 6, struct.unpack_from("=H", message, 6)[0] | 4)  # NLM_F_ACK
            struct.pack_into("=I", message, 8, number)
            place = len(self._messages) + message.index(struct.pack("=I", _MARKER))
            self._fd_places.append((place, order[hook.program]))
            self._messages += message

    def _bound_programs(self, fds: dict[str, int], new: list[str]) -> list[_Load]:
        data = data_words(self._spec.data)
        license_ = ctypes.create_string_buffer(self._spec.license.encode())
        maps = {name: _Descriptor(fds.get(name, 0)) for name in self._spec.maps}
        loads = []
        for program in self._spec.programs.values():
            insns = bind(program, data, maps)  # type: ignore[arg-type]  # bind uses the descriptor alone
            buffer = (ctypes.c_char * len(insns)).from_buffer(insns)
            attr = _LOAD.pack(
                *(program.type, len(insns) // 8, ctypes.addressof(buffer), ctypes.addressof(license_)),
                *(0, 0, 0, 0, 0, program.name[:15].encode()),
            )
            call = _Call(Cmd.PROG_LOAD, ctypes.create_string_buffer(attr, len(attr)), program.name, (buffer, license_))
            refs = tuple((2 * index + 1, new.index(name)) for index, name in program.map_refs if name in new)
            loads.append(_Load(call, memoryview(insns).cast("I"), refs))
        return loads

    def run(self) -> None:
        """Make the calls. BpfError or OSError if one fails; nothing is undone."""
        maps = [create() for create in self._creates]
        if self._pin:
            os.rename(self._pin, self._pin + PENDING)
            struct.pack_into("=I", self._pin_new.attr, 8, maps[0])
            self._pin_new()
        programs = []
        for load in self._loads:
            for word, number in load.refs:
                load.words[word] = maps[number]
            programs.append(load.call())
        for slot in self._slots:
            struct.pack_into("=I", slot.value, 0, programs[slot.program])
            if slot.is_calls:
                struct.pack_into("=I", slot.call.attr, 0, maps[0])
            slot.call()
        self._attach(programs)
        if self._pin:
            os.unlink(self._pin + PENDING)
        for fd in (*programs, *maps):
            os.close(fd)

    def _attach(self, programs: list[int]) -> None:
        for place, index in self._fd_places:
            struct.pack_into("=I", self._messages, place, programs[index])
        self._socket.send(self._messages)
        for _ in self._hooks:
            answer = self._socket.recv(4096)
            error = -struct.unpack_from("=i", answer, 16)[0]
            if error:
                raise OSError(error, os.strerror(error))


@dataclass(frozen=True, slots=True)
class _Descriptor:
    fd: int


def _create(item: MapSpec) -> _Call:
    if item.inner is not None:
        raise FloorUnavailable(f"map {item.name} is a map of maps that is not pinned")
    sizes = (item.type, item.key_size, item.value_size, max_entries(item), item.flags)
    attr = _CREATE.pack(*sizes, 0, 0, item.name[:15].encode())
    return _Call(Cmd.MAP_CREATE, ctypes.create_string_buffer(attr, len(attr)), item.name)


def _slot(fd: int | None, slot: int, program: int, name: str) -> _Slot:
    key = ctypes.create_string_buffer(struct.pack("=I", slot), 4)
    value = ctypes.create_string_buffer(4)
    attr = _ELEM.pack(fd or 0, ctypes.addressof(key), ctypes.addressof(value), 0)
    call = _Call(
        Cmd.MAP_UPDATE_ELEM, ctypes.create_string_buffer(attr, len(attr)), f"slot {slot} of {name}", (key, value)
    )
    return _Slot(call, value, program, fd is None)

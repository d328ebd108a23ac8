"""bpf(2) in words: the command, and the map with its slot, the program, or the pin."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf, links
from datapath.kernel.links import AttachType, LinkType
from datapath.kernel.map import pinned_maps
from datapath.kernel.uapi import Cmd
from lab.gates.memory import Process

_ATTR_BYTES = 152
"""As much of union bpf_attr as is looked at: PROG_LOAD's name ends before that."""

_ELEMENT = (
    *(Cmd.MAP_LOOKUP_ELEM, Cmd.MAP_LOOKUP_AND_DELETE_ELEM, Cmd.MAP_UPDATE_ELEM, Cmd.MAP_DELETE_ELEM),
    Cmd.MAP_GET_NEXT_KEY,
)
_INDEXED = (MapType.PROG_ARRAY, MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.PERF_EVENT_ARRAY, MapType.ARRAY_OF_MAPS)
_AT_HOOKS = (Cmd.LINK_CREATE, Cmd.LINK_UPDATE, Cmd.LINK_DETACH, Cmd.PROG_QUERY)
_BATCH = (Cmd.MAP_LOOKUP_BATCH, Cmd.MAP_LOOKUP_AND_DELETE_BATCH, Cmd.MAP_UPDATE_BATCH, Cmd.MAP_DELETE_BATCH)


class MapNames:
    """Names of maps by id: those of their pins, which are longer than the 15 bytes that the kernel keeps."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: dict[int, str] = {}

    def note(self, map_id: int, path: str) -> None:
        """A map is about to be pinned."""
        self._names[map_id] = os.path.basename(path)

    def of(self, fd: int) -> tuple[str, int, int]:
        """Return (name, type, bytes of a key) of the map of a descriptor; BpfError if it is none."""
        info = bpf.map_info(fd)
        if info.id not in self._names:
            self._names |= {ident: name for ident, name in self._pinned() if ident not in self._names}
        return self._names.setdefault(info.id, info.name), info.type, info.key_size

    def _pinned(self) -> Iterable[tuple[int, str]]:
        for found in pinned_maps(self._directory):
            yield bpf.map_info(found.fd).id, found.name


def name_of(command: int) -> str:
    """Return a command as it is called here: MAP_UPDATE, PROG_LOAD."""
    try:
        return Cmd(command).name.removesuffix("_ELEM")
    except ValueError:  # of a later kernel than this file
        return f"BPF_{command}"


NAMES = frozenset(map(name_of, Cmd))
"""What the commands are called."""


def describe(process: Process, args: tuple[int, ...], maps: MapNames) -> tuple[str, str]:
    """Return (name, subject) of a bpf(2) that a process makes."""
    command, address, size = args[0] & 0xFFFFFFFF, args[1], args[2] & 0xFFFFFFFF
    attr = process.read(address, min(size, _ATTR_BYTES)).ljust(_ATTR_BYTES, b"\0")
    return name_of(command), _subject(process, command, attr, maps)


def _subject(process: Process, command: int, attr: bytes, maps: MapNames) -> str:
    first: int = struct.unpack_from("=I", attr)[0]
    if command in _ELEMENT:
        key_address: int = struct.unpack_from("=Q", attr, 8)[0]
        return _element(process, first, key_address, maps)
    if command == Cmd.MAP_CREATE:
        return _text(attr, 28)
    if command == Cmd.PROG_LOAD:
        return _text(attr, 48)
    if command in (Cmd.OBJ_PIN, Cmd.OBJ_GET):
        address, descriptor = struct.unpack_from("=QI", attr)
        path = process.string(address)
        if command == Cmd.OBJ_PIN:
            _note_pin(process, descriptor, path, maps)
        return path
    if command in (Cmd.MAP_FREEZE, Cmd.OBJ_GET_INFO_BY_FD):
        return _of_descriptor(process, first, maps)
    if command in _BATCH:
        return _of_descriptor(process, struct.unpack_from("=I", attr, 36)[0], maps)
    if command in _AT_HOOKS:
        return _hook_of(process, command, attr)
    if name_of(command).endswith("_BY_ID"):
        return str(first)
    return ""


def _element(process: Process, descriptor: int, key_address: int, maps: MapNames) -> str:
    with process.borrowed(descriptor) as fd:
        name, kind, key_size = maps.of(fd)
    if not key_address:
        return name
    key = process.read(key_address, key_size)
    return f"{name}[{struct.unpack('=I', key)[0] if kind in _INDEXED else f'0x{key.hex()}'}]"


def _note_pin(process: Process, descriptor: int, path: str, maps: MapNames) -> None:
    if process.link(descriptor) != "anon_inode:bpf-map":
        return
    with process.borrowed(descriptor) as fd:
        maps.note(bpf.map_info(fd).id, path)


def _of_descriptor(process: Process, descriptor: int, maps: MapNames) -> str:
    link = process.link(descriptor)
    with process.borrowed(descriptor) as fd:
        if link == "anon_inode:bpf-map":
            return maps.of(fd)[0]
        return bpf.prog_info(fd).name if link == "anon_inode:bpf-prog" else link


def _hook_of(process: Process, command: int, attr: bytes) -> str:
    """Return the hook that a link is made for or belongs to, or that is asked about."""
    if command in (Cmd.LINK_UPDATE, Cmd.LINK_DETACH):
        with process.borrowed(struct.unpack_from("=I", attr)[0]) as fd:
            found = links.info(fd)
        # Of a link at XDP, which has this one hook, the kernel tells no hook.
        hook = AttachType.XDP if found.type == LinkType.XDP else found.attach_type
        ifindex, attach_type = found.ifindex, hook or 0
    else:
        ifindex, attach_type = struct.unpack_from("=2I", attr, 4 if command == Cmd.LINK_CREATE else 0)
    known = attach_type in set(AttachType)
    return f"{AttachType(attach_type).name if known else attach_type} of interface {ifindex}"


def _text(attr: bytes, offset: int) -> str:
    return attr[offset : offset + bpf.OBJ_NAME_LEN].split(b"\0", 1)[0].decode(errors="replace")

"""A reader of pcapng files, as far as ours go: blocks, interfaces, packets and their options."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Packet:
    time_ns: int
    interface: str
    outgoing: bool
    length: int
    data: bytes
    comment: str


Read = list[Packet]


def read(path: Path) -> Read:
    data, at, names, found = path.read_bytes(), 0, [], []
    assert data[:4] == b"\x0a\x0d\x0d\x0a"
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert struct.unpack_from("<I", data, at + size - 4) == (size,)
        body = data[at + 8 : at + size - 4]
        at += size
        if kind == 1:
            fields = options(body[8:])
            assert fields[9] == b"\x09"
            names.append(fields[2].decode())
        if kind == 6:
            number, high, low, captured, length = struct.unpack_from("<5I", body)
            fields = options(body[20 + captured + -captured % 4 :])
            outgoing = fields[2] == struct.pack("<I", 2)
            comment = fields.get(1, b"").decode()
            found.append(Packet(high << 32 | low, names[number], outgoing, length, body[20 : 20 + captured], comment))
    return found


def options(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(data):
        code, size = struct.unpack_from("<HH", data, at)
        found[code] = data[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4
    return found

"""A reader of .BTF.ext sections: which instruction came from which function and line, and CO-RE relocations.

Format: Documentation/bpf/btf.rst. Offsets count bytes of the instruction's section; a program's records count
instructions of the program, as the kernel wants them.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from datapath.object.btf import Btf, BtfError
from datapath.object.btf import parse as parse_btf
from datapath.object.spec import INSN_SIZE, DebugInfo, SourceLine

MAGIC = 0xEB9F
FUNC_INFO = struct.Struct("<2I")
LINE_INFO = struct.Struct("<4I")

# magic, version, flags, header length, then offset and length of func_info, line_info, core_relo
_HEADER = struct.Struct("<HBBI6I")
_SHORTEST = 24  # without core_relo
_LINE_BITS = 10  # bits of a record's last word that count columns

Records = Mapping[str, tuple[tuple[int, ...], ...]]
"""Words of every record of one kind, the offset first, by section, in the order of their offsets."""


@dataclass(frozen=True, slots=True)
class BtfExt:
    """The three tables of a .BTF.ext section."""

    functions: Records = field(default_factory=dict)
    lines: Records = field(default_factory=dict)
    core: Records = field(default_factory=dict)

    def has_core(self, section: str, start: int, end: int) -> bool:
        """Tell whether an instruction in a range of bytes must be relocated against the running kernel's types."""
        return any(start <= offset < end for offset, *_ in self.core.get(section, ()))

    def of_function(self, section: str, start: int, end: int, at: int) -> DebugInfo:
        """Return the records of a function, moved to instruction `at` of a program; empty if it has none."""
        functions = b"".join(
            FUNC_INFO.pack(at, type_id) for offset, type_id in self.functions.get(section, ()) if offset == start
        )
        table = self.lines.get(section, ())
        first, last = (bisect_left(table, (limit,)) for limit in (start, end))
        words = array("I", chain.from_iterable(table[first:last]))
        words[::4] = array("I", [(offset - start) // INSN_SIZE + at for offset in words[::4]])
        return DebugInfo(functions, words.tobytes())


def parse(data: bytes, btf: Btf) -> BtfExt:
    """Read a .BTF.ext section; BtfError if it is damaged."""
    try:
        magic, version, _, header, *tables = _HEADER.unpack(data[: _HEADER.size].ljust(_HEADER.size, b"\0"))
        if magic != MAGIC or version != 1 or header < _SHORTEST:
            raise BtfError(f".BTF.ext: magic {magic:#x}, version {version}: not the BTF that we know")
        if header > len(data):
            raise BtfError(f".BTF.ext: truncated: {len(data)} bytes are less than its header")
        if header < _HEADER.size:
            tables[4:] = (0, 0)
        places = [(header + tables[i], tables[i + 1]) for i in (0, 2, 4)]
        functions, lines, core = (
            _table(data, btf, *place, words) for place, words in zip(places, (2, 4, 4), strict=True)
        )
    except struct.error as error:
        raise BtfError(f".BTF.ext: truncated: {error}") from error
    return BtfExt(functions, lines, core)


def source_line(data: bytes, debug: DebugInfo, instruction: int) -> SourceLine | None:
    """Return the line that an instruction of a program was compiled from; None if nobody noted it.

    `data` is the .BTF section that the records belong to.
    """
    found = None
    for at, file, text, position in LINE_INFO.iter_unpack(debug.line_info):
        if at > instruction:
            break
        found = file, text, position
    if found is None:
        return None
    file, text, position = found
    btf = parse_btf(data)
    return SourceLine(btf.string(file), position >> _LINE_BITS, btf.string(text).strip())


def _table(data: bytes, btf: Btf, start: int, length: int, words: int) -> Records:
    if not length:
        return {}
    (size,) = struct.unpack_from("<I", data, start)
    if size < 4 * words or start + length > len(data):
        raise BtfError(f".BTF.ext: records of {size} bytes, a table up to byte {start + length} of {len(data)}")
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, records in _blocks(data, start + 4, start + length, size):
        layout = struct.Struct(f"<{words}I{size - 4 * words}x")
        found.setdefault(btf.string(name), []).extend(layout.iter_unpack(records))
    return {name: tuple(sorted(records)) for name, records in found.items()}


def _blocks(data: bytes, position: int, end: int, size: int) -> Iterator[tuple[int, bytes]]:
    while position < end:
        name, count = struct.unpack_from("<2I", data, position)
        position += 8
        records = data[position : position + count * size]
        if len(records) != count * size:
            raise BtfError(f".BTF.ext: {count} records of {size} bytes do not fit")
        yield name, records
        position += count * size

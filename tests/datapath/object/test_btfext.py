from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from datapath.object import btf, btfext
from datapath.object.btf import BtfError
from datapath.object.elffile import read
from datapath.object.reader import read_object
from datapath.object.spec import DebugInfo
from tests.datapath.snippets import MAIN

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

SOURCE = (
    MAIN
    + r"""
{
    __u32 length = skb->len;

    if (length == 64)
        return ktime_get_ns();
    return length;
}
"""
)


def test_instructions_lead_to_lines_of_the_source(compile_c: Compile) -> None:
    path = compile_c(SOURCE)
    spec = read_object(path).spec
    program = spec.programs["tc_main"]
    lines = path.with_suffix(".c").read_text().splitlines()
    found = {btfext.source_line(spec.btf, program.debug, at) for at in range(program.instructions)}
    assert all(line is not None and lines[line.line - 1].strip() == line.text for line in found)
    assert "return ktime_get_ns();" in {line.text for line in found if line is not None}
    first = btfext.source_line(spec.btf, program.debug, 0)
    assert first is not None
    assert first.file.endswith(path.with_suffix(".c").name)
    assert str(first) == f"{path.with_suffix('.c').name}:{first.line} `{first.text}`"


def test_a_program_without_records_has_no_line(compile_c: Compile) -> None:
    assert btfext.source_line(read_object(compile_c(SOURCE)).spec.btf, DebugInfo(), 3) is None


@pytest.fixture(scope="module")
def sections(compile_c: Compile) -> tuple[bytes, btf.Btf]:
    elf = read("snippet", compile_c(SOURCE).read_bytes())
    ext, types = elf.section(".BTF.ext"), elf.section(".BTF")
    assert ext is not None
    assert types is not None
    return elf.content(ext), btf.parse(elf.content(types))


@pytest.mark.parametrize("length", [0, 8, 30, 60, -1])
def test_truncated_records_are_refused(sections: tuple[bytes, btf.Btf], length: int) -> None:
    data, types = sections
    with pytest.raises(BtfError, match=r"\.BTF\.ext"):
        btfext.parse(data[:length], types)


def test_records_of_another_size_are_read(sections: tuple[bytes, btf.Btf]) -> None:
    """A newer compiler may append to a record what we do not know."""
    data, types = sections
    offset, length = struct.unpack_from("<2I", data, 8)
    start = struct.unpack_from("<I", data, 4)[0] + offset
    name, count = struct.unpack_from("<2I", data, start + 4)
    records = [data[start + 12 + 8 * i : start + 20 + 8 * i] + b"more" for i in range(count)]
    table = struct.pack("<3I", 12, name, count) + b"".join(records)
    header = struct.pack("<HBBI6I", btfext.MAGIC, 1, 0, 32, 0, len(table), len(table), 0, len(table), 0)
    assert btfext.parse(header + table, types).functions == btfext.parse(data, types).functions
    assert length == 4 + 8 + 8 * count

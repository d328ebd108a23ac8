from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from datapath.build.compile import compile_source, probe_compiler
from datapath.errors import ObjectError, ToolMissing
from lab.cli.commands import inspect

SOURCE = r"""
typedef unsigned int u32;
#define __section(NAME) __attribute__((section(NAME), used))
#define __fetch(x) ({ u32 r_; asm volatile("%0 = " #x " ll" : "=r"(r_)); r_; })
struct bpf_elf_map { u32 type, size_key, size_value, max_elem, flags, id, pinning, inner_id, inner_idx; };
static long (*tail_call)(void *ctx, void *map, u32 slot) = (void *)12;
volatile u32 SECLABEL = 0x2a;
struct bpf_elf_map __section("maps") cilium_calls_65535 = { 3, 4, 4, 47, 0, 2, 2 };
__section("from-container") int cil_from_container(void *ctx) {
    tail_call(ctx, &cilium_calls_65535, 7);
    return __fetch(SECLABEL);
}
__section("2/7") int tail_handle_ipv4(void *ctx) { return 0; }
__section("2/8") int tail_next(void *ctx) { return 0; }
char ____license[] __section("license") = "Dual BSD/GPL";
"""


@pytest.fixture(scope="module")
def object_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inspect")
    source = directory / "small.c"
    source.write_text(SOURCE)
    try:
        return compile_source(source, directory / "small.o", compiler=probe_compiler())
    except ToolMissing as error:
        pytest.skip(str(error))


def call(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_parser(parser.add_subparsers())
    args = parser.parse_args(["inspect", *argv])
    return int(args.run(args))


def test_json_has_everything(object_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(object_file), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["license"] == "Dual BSD/GPL"
    assert document["path"] == str(object_file)
    assert document["constants"] == [{"name": "SECLABEL", "offset": 0, "size": 4, "section": ".data", "value": 42}]
    programs = {p["name"]: p for p in document["programs"]}
    assert programs["cil_from_container"]["maps"] == ["cilium_calls_65535"]
    assert programs["cil_from_container"]["slot"] is None
    assert programs["tail_handle_ipv4"] == {
        "name": "tail_handle_ipv4", "section": "2/7", "type": "sched_cls", "instructions": 2,
        "map_id": 2, "slot": 7, "maps": [], "subprograms": [], "problem": None,
        "reached_from": ["cil_from_container"],
    }  # fmt: skip
    (calls,) = document["maps"]
    assert (calls["type"], calls["max_entries"], calls["pinned"], calls["id"]) == ("prog_array", 47, True, 2)
    assert calls["contents"] == {"7": "tail_handle_ipv4", "8": "tail_next"}


def test_tables_are_whole_in_a_pipe(object_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(object_file)) == 0
    out = capsys.readouterr().out
    assert "3 programs, " in out
    assert "cilium_calls_65535[7]" in out
    assert "7-8" in out
    assert "by name" in out
    assert "SECLABEL" in out
    assert "0x2a" in out
    assert "license Dual BSD/GPL" in out


def test_what_cannot_be_loaded_is_listed_with_its_reason(
    object_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "other.c"
    source.write_text(SOURCE + '__section("kprobe/vfs_read") int other(void *ctx) { return 0; }')
    path = compile_source(source, tmp_path / "other.o", compiler=probe_compiler())
    assert call(str(path)) == 0
    out = capsys.readouterr().out
    assert "4 programs, " in out
    reason = "is of kind kprobe, which is not supported"
    assert f"not supported: program other (section kprobe/vfs_read) {reason}" in out
    assert call(str(path), "--json") == 0
    problems = {p["name"]: p["problem"] for p in json.loads(capsys.readouterr().out)["programs"]}
    assert {name for name, problem in problems.items() if problem} == {"other"}
    assert problems["other"] == reason


def test_what_is_no_object_is_one_clear_error(tmp_path: Path) -> None:
    text = tmp_path / "notes.o"
    text.write_text("no object")
    with pytest.raises(ObjectError, match=r"notes\.o: not an ELF file"):
        call(str(text))

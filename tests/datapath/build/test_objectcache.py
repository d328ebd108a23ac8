"""objectcache.py: compiled objects that nodes and runs have in common."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.build.compile import Compiler, probe_compiler
from datapath.build.objectcache import ObjectCache, UnsafeCache, key_of
from datapath.build.template import Origin
from datapath.build.templates import TemplateCache
from datapath.endpoint import DatapathConfig
from datapath.errors import CompileError
from lab.system.tools import run
from tests.datapath.build.test_templates import write_library
from tests.datapath.values import NODE, POD

KEY = key_of("an object")

A, B, C = map(key_of, "abc")
NUMBERS = [key_of(str(number)) for number in range(40)]


@pytest.fixture
def kept(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "objects")


class TestDirectory:
    def test_what_was_put_is_got(self, kept: ObjectCache) -> None:
        assert kept.get(A) is None
        assert kept.put(A, b"one")
        assert kept.put(B, b"")
        assert kept.get(A) == b"one"
        assert kept.get(B) == b""
        assert kept.directory.stat().st_mode & 0o777 == 0o700
        assert kept.clear() == (2, 67)
        assert kept.get(A) is None
        assert kept.clear() == (0, 0)

    @pytest.mark.parametrize("damaged", [b"", b"short", bytes(32) + b"another", b"\0" * 40])
    def test_what_is_damaged_is_not_there(self, kept: ObjectCache, damaged: bytes) -> None:
        kept.put(A, b"one")
        (kept.directory / A).write_bytes(damaged)
        assert kept.get(A) is None
        kept.put(A, b"one")
        assert kept.get(A) == b"one"

    def test_a_link_or_a_directory_of_its_name_is_no_object(self, kept: ObjectCache, tmp_path: Path) -> None:
        """A link is not followed, and the next object takes its place."""
        kept.put(KEY, b"whole")
        entry = kept.directory / KEY
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
        assert kept.get(KEY) is None
        assert kept.put(KEY, b"another")
        assert kept.get(KEY) == b"another"
        entry.unlink()
        entry.mkdir()
        assert kept.get(KEY) is None
        assert not kept.put(KEY, b"another")

    @pytest.mark.privileged
    def test_what_the_file_system_cannot_read_is_not_there(self, kept: ObjectCache) -> None:
        """The memory of a process has nothing at its beginning: to read it there is EIO."""
        kept.put(KEY, b"whole")
        entry = kept.directory / KEY
        run(["mount", "--bind", f"/proc/{os.getpid()}/mem", str(entry)])
        try:
            with pytest.raises(OSError, match="Input/output error"):
                entry.read_bytes()
            assert kept.get(KEY) is None
        finally:
            run(["umount", str(entry)])
        assert kept.get(KEY) == b"whole"

    def test_what_cannot_be_kept_is_not_kept(self, kept: ObjectCache) -> None:
        kept.put("a", b"one")
        (kept.directory / "b").mkdir()
        assert not kept.put("b", b"two")
        assert kept.get("a") == b"one"

    def test_the_limit_holds_and_what_was_used_stays(self, tmp_path: Path) -> None:
        kept = ObjectCache(tmp_path / "objects", limit=400)
        for number in range(3):
            kept.put(NUMBERS[number], bytes(100))
            os.utime(kept.directory / NUMBERS[number], (number, number))
        assert kept.get(NUMBERS[0]) is not None  # now the latest
        kept.put(NUMBERS[3], bytes(100))
        assert [kept.get(key) is not None for key in NUMBERS[:4]] == [True, False, True, True]
        assert sum(path.stat().st_size for path in kept.directory.iterdir()) <= 400

    def test_what_a_killed_process_was_writing_goes_in_time(self, tmp_path: Path) -> None:
        kept = ObjectCache(tmp_path / "objects", limit=300)
        kept.put(A, bytes(100))
        left = kept.directory / ".unfinished-left"
        left.write_bytes(bytes(150))
        kept.put(B, bytes(100))
        assert left.exists()  # somebody may be writing it
        os.utime(left, (0, 0))
        kept.put(C, bytes(100))
        assert not left.exists()
        assert kept.get(C) is not None

    def test_what_others_keep_there_stays(self, tmp_path: Path) -> None:
        kept = ObjectCache(tmp_path, limit=300)
        others = [
            tmp_path / name for name in ("important.txt", ".profile", "0" * 63, key_of("directory"), key_of("link"))
        ]
        for path in others[:3]:
            path.write_bytes(bytes(1000))
            os.utime(path, (0, 0))
        others[3].mkdir()
        others[4].symlink_to(others[0])
        assert kept.put(A, bytes(200))
        assert kept.put(B, bytes(200))  # there is room for one
        assert kept.get(A) is None
        assert kept.clear() == (1, 232)
        assert sorted(tmp_path.iterdir()) == sorted(others)

    @pytest.mark.privileged
    def test_a_directory_that_others_may_write_is_refused(self, kept: ObjectCache) -> None:
        kept.put(A, b"one")
        kept.directory.chmod(0o777)
        with pytest.raises(UnsafeCache, match="has mode 0777"):
            kept.get(A)
        kept.directory.chmod(0o700)
        os.chown(kept.directory, 65534, 65534)
        with pytest.raises(UnsafeCache, match="belongs to user 65534"):
            kept.put(B, b"two")
        os.chown(kept.directory, 0, 0)
        moved = kept.directory.rename(kept.directory.with_name("elsewhere"))
        kept.directory.symlink_to(moved)
        with pytest.raises(UnsafeCache, match="is no directory"):
            kept.clear()
        assert (moved / A).exists()

    def test_processes_that_add_read_and_make_room_at_once(self, tmp_path: Path) -> None:
        directory = tmp_path / "objects"
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=_use, args=(directory, first)) for first in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
        # While one makes room, each of the others may put one more.
        assert sum(path.stat().st_size for path in directory.iterdir()) <= SMALL + 3 * ENTRY


ENTRY = 500 + 32
"""Bytes of an object with its digest."""
SMALL = 3000
"""Bytes of a cache that holds a seventh of what the processes put into it."""


def _use(directory: Path, first: int) -> None:
    kept, found = ObjectCache(directory, limit=SMALL), 0
    for number in range(200):
        name = (first + number) % 40
        kept.put(NUMBERS[name], bytes([name]) * 500)
        content = kept.get(NUMBERS[name])
        assert content in (None, bytes([name]) * 500)
        found += content is not None
    assert found


# --- under the templates ---


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return probe_compiler()


Fetch = Callable[..., tuple[Origin, bytes]]


@pytest.fixture
def fetch(tmp_path: Path, compiler: Compiler) -> Fetch:
    """Return a function that has a new node fetch a pod's template from a library that lies where it is told."""

    def fetch(name: str, library: Path, compiler: Compiler = compiler, **changes: object) -> tuple[Origin, bytes]:
        config = DatapathConfig(
            library=library,
            state=tmp_path / name,
            bpffs=tmp_path / "bpffs",
            netns=tmp_path / "netns",
            node=NODE,
            object_cache=tmp_path / "objects",
        )
        found = TemplateCache(replace(config, **changes), compiler=compiler).fetch_timed(POD)  # type: ignore[arg-type]
        return found.origin, found.template.path.read_bytes()

    return fetch


def test_another_node_takes_what_is_there(fetch: Fetch, tmp_path: Path) -> None:
    """Whose paths do not matter: the object names none of them."""
    for library in ("one", "two"):
        write_library(tmp_path / library)
    origin, first = fetch("node-1", tmp_path / "one")
    assert origin is Origin.COMPILED
    assert fetch("node-2", tmp_path / "two") == (Origin.HIT, first)
    assert str(tmp_path).encode() not in first
    assert fetch("node-3", tmp_path / "two", object_cache=None) == (Origin.COMPILED, first)
    assert len(list((tmp_path / "objects").iterdir())) == 1


def test_everything_that_the_compiler_sees_makes_another_object(
    fetch: Fetch, tmp_path: Path, compiler: Compiler
) -> None:
    library = tmp_path / "library"
    write_library(library)
    assert fetch("node-1", library)[0] is Origin.COMPILED
    assert fetch("node-2", library, defines=(("ANY", "1"),))[0] is Origin.COMPILED
    assert fetch("node-3", library, node=replace(NODE, mtu=1400))[0] is Origin.COMPILED
    wrapper = tmp_path / "clang"
    wrapper.write_text(f'#!/bin/sh\nexec "{compiler.path}" "$@"\n')
    wrapper.chmod(0o755)
    wrapped = replace(compiler, path=wrapper)
    assert fetch("node-4", library, wrapped)[0] is Origin.COMPILED
    assert fetch("node-5", library, wrapped)[0] is Origin.HIT
    wrapper.write_text(f'#!/bin/sh\n\nexec "{compiler.path}" "$@"\n')
    assert fetch("node-6", library, wrapped)[0] is Origin.COMPILED
    utils = library / "lib/utils.h"
    text = utils.read_text()
    utils.write_text(f"{text}\n#define ANOTHER 1\n")
    assert fetch("node-7", library)[0] is Origin.COMPILED
    utils.write_text(text)
    assert fetch("node-8", library)[0] is Origin.HIT


def test_a_header_behind_a_link_is_not_missed(fetch: Fetch, tmp_path: Path) -> None:
    library, elsewhere = tmp_path / "library", tmp_path / "elsewhere"
    write_library(library)
    (library / "lib").rename(elsewhere)
    (library / "lib").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(library)  # has no end
    assert fetch("node-1", library)[0] is Origin.COMPILED
    assert fetch("node-2", library)[0] is Origin.HIT
    with (elsewhere / "utils.h").open("a") as file:
        file.write("\n#define ANOTHER 1\n")
    assert fetch("node-3", library)[0] is Origin.COMPILED


def test_an_object_of_a_header_that_no_hash_covers_is_not_kept(fetch: Fetch, tmp_path: Path) -> None:
    library, outside = tmp_path / "library", tmp_path / "out side" / "more.inc"
    write_library(library)
    outside.parent.mkdir()
    outside.write_text("#define ANOTHER 1\n")
    with (library / "lib/utils.h").open("a") as file:
        file.write(f'\n#include "{outside}"\n')
    assert fetch("node-1", library)[0] is Origin.COMPILED
    assert fetch("node-2", library)[0] is Origin.COMPILED


def test_a_source_that_is_refused_leaves_nothing(fetch: Fetch, tmp_path: Path) -> None:
    library = tmp_path / "library"
    write_library(library)
    (library / "bpf_lxc.c").write_text("int broken(\n")
    with pytest.raises(CompileError):
        fetch("node-1", library)
    assert not (tmp_path / "objects").exists()


def test_a_damaged_object_is_compiled_again(fetch: Fetch, tmp_path: Path) -> None:
    library = tmp_path / "library"
    write_library(library)
    _, first = fetch("node-1", library)
    (entry,) = (tmp_path / "objects").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    assert fetch("node-2", library) == (Origin.COMPILED, first)
    assert fetch("node-3", library) == (Origin.HIT, first)

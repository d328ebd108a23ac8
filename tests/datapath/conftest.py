"""Small C programs compiled for a test, and what it leaves open."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.build.compile import Compiler, compile_source, probe_compiler
from datapath.errors import ToolMissing
from datapath.kernel.pins import Pin
from tests.datapath.pinned import NAME

PREAMBLE = r"""
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
#define __section(NAME) __attribute__((section(NAME), used))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define __fetch(x) ({ __u32 r_; asm volatile("%0 = " #x " ll" : "=r"(r_)); r_; })
struct __sk_buff { __u32 len; __u32 rest[47]; };
struct bpf_elf_map { __u32 type, size_key, size_value, max_elem, flags, id, pinning, inner_id, inner_idx; };
static void *(*map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*tail_call)(void *ctx, void *map, __u32 slot) = (void *)12;
static __u64 (*ktime_get_ns)(void) = (void *)5;
char ____license[] __section("license") = "GPL";
"""
"""What every snippet begins with: the conventions of the objects that Cilium's loader takes."""

Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def compiler() -> Compiler:
    try:
        return probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def compile_c(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Return a function from C source (the preamble is added) and macros to an object file."""
    directory = tmp_path_factory.mktemp("objects")
    done: dict[tuple[str, tuple[tuple[str, str], ...]], Path] = {}

    def compile_c(text: str, **defines: str) -> Path:
        key = (text, tuple(sorted(defines.items())))
        if key not in done:
            source = directory / f"snippet{len(done)}.c"
            source.write_text(PREAMBLE + text)
            done[key] = compile_source(source, source.with_suffix(".o"), defines=defines, compiler=compiler)
        return done[key]

    return compile_c


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """Fail the test if it leaves a BPF descriptor open."""
    before = _bpf_descriptors()
    yield
    assert _bpf_descriptors() - before == set()


def _bpf_descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if "bpf" in target or "btf" in target:
            found.add(f"{fd} {target}")
    return found


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of compiled templates that all tests of one run share, in whatever worker they run."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "templates"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.fixture
def pins(bpffs: Path) -> Path:
    """Return a directory in which nothing is pinned yet; the kernel puts files of its own into the root."""
    (bpffs / "globals").mkdir()
    return bpffs / "globals"


@pytest.fixture
def pin(pins: Path) -> Pin:
    return Pin(pins / NAME)

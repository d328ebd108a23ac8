"""templates.py: one clang per hash. The properties of upstream's cache_test, hash_test and template_test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from datapath.build.compile import Compiler, probe_compiler
from datapath.build.template import Fetched, Kind, Origin
from datapath.build.templates import TemplateCache
from datapath.endpoint import LABEL_HOST, DatapathConfig, Endpoint, NodeConfig
from datapath.errors import Cancelled, CompileError, ObjectError
from datapath.object.reader import read_object
from tests.datapath.values import NODE, POD

UTILS = """
typedef unsigned int __u32;
typedef unsigned short __u16;
#define fetch_u32(x) ((__u32)(unsigned long)(&(x)))
#define fetch_u16(x) ((__u16)fetch_u32(x))
#define fetch_mac(x) fetch_u32(x##_1)
#define DEFINE_U16(NAME, value) volatile __u16 NAME = value
#define DEFINE_U32(NAME, value) volatile __u32 NAME = value
#define DEFINE_MAC(NAME, a, b, c, d, e, f) volatile __u32 NAME##_1 = (a) << 24 | (d), NAME##_2 = (e) << 8 | (f)
#define DEFINE_IPV6(NAME, a, b, c, d, ...) \\
    volatile __u32 NAME##_1 = (a) + 1, NAME##_2 = (b) + 1, NAME##_3 = (c) + 1, NAME##_4 = (d) + 1
#define QUOTE(x) #x
struct map { __u32 type, size_key, size_value, max_elem, flags, id, pinning, inner_id, inner_idx; };
#define CALLS(name) struct map name __attribute__((section("maps"), used)) = { 3, 4, 4, 8, 0, 2, 2, 0, 0 }
#define MAP(name) struct map name __attribute__((section("maps"), used)) = { 1, 4, 4, 8, 0, 0, 2, 0, 0 }
char _license[] __attribute__((section("license"), used)) = "Dual BSD/GPL";
"""
LXC = """
#include <ep_config.h>
#include <node_config.h>
CALLS(CALLS_MAP);
MAP(POLICY_MAP);
__attribute__((section("from-container"), used)) int cil_from_container(void *ctx)
{
    (void)ctx;
    return (int)(LXC_IPV4 + SECLABEL + GENERATION + MTU + LXC_ID);
}
"""
HOST = """
#include <node_config.h>
#include <ep_config.h>
CALLS(CALLS_MAP);
MAP(POLICY_MAP);
__attribute__((section("from-host"), used)) int cil_from_host(void *ctx) { (void)ctx; return (int)GENERATION; }
"""
OVERLAY = """
#include <node_config.h>
#include <netdev_config.h>
CALLS(CALLS_MAP);
__attribute__((section("from-overlay"), used)) int cil_from_overlay(void *ctx) { (void)ctx; return SECLABEL; }
"""

HOST_ENDPOINT = replace(POD, id=7, ipv4=None, ipv6=None, identity=1, labels=frozenset({LABEL_HOST}))

Compiled = list[tuple[Kind, str]]

ROOT = Path(__file__).parents[3]


def write_library(library: Path) -> None:
    (library / "lib").mkdir(parents=True)
    (library / "lib/utils.h").write_text(UTILS)
    for name, text in (("bpf_lxc.c", LXC), ("bpf_host.c", HOST), ("bpf_overlay.c", OVERLAY)):
        (library / name).write_text(text)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return probe_compiler()


@pytest.fixture
def config(tmp_path: Path) -> DatapathConfig:
    write_library(tmp_path / "library")
    return DatapathConfig(
        library=tmp_path / "library",
        state=tmp_path / "state",
        bpffs=tmp_path / "bpffs",
        netns=tmp_path / "netns",
        node=NODE,
    )


@pytest.fixture
def compiled() -> Compiled:
    return []


@pytest.fixture
def make(config: DatapathConfig, compiler: Compiler, compiled: Compiled) -> Callable[[], TemplateCache]:
    """Return a maker of caches on one state directory, as two processes would have them."""

    def cache() -> TemplateCache:
        return TemplateCache(config, compiler=compiler, on_compile=lambda kind, name: compiled.append((kind, name)))

    return cache


@pytest.fixture
def cache(make: Callable[[], TemplateCache]) -> TemplateCache:
    return make()


def slow(compiler: Compiler, directory: Path, gate: Path) -> Compiler:
    """Return the compiler behind a gate: it starts when the file `gate` appears, and leaves a mark when it waits."""
    script = directory / "slow-clang"
    script.write_text(
        # It gives up by itself, so that a test that fails before it opens the gate ends, too.
        f'#!/bin/sh\n: > "{gate}.waiting"\ntries=0\n'
        f'while [ ! -e "{gate}" ]; do tries=$((tries + 1)); [ $tries -lt 3000 ] || exit 1; sleep 0.01; done\n'
        f'exec "{compiler.path}" "$@"\n'
    )
    script.chmod(0o755)
    return replace(compiler, path=script)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"timeout: {what}"
        threading.Event().wait(0.005)


class TestCache:
    """TestobjectCache: first fetch compiles; the same again does not; a changed ID does not; a changed option does."""

    def test_first_compiles_and_the_next_does_not(self, cache: TemplateCache, compiled: Compiled) -> None:
        first, again = cache.fetch_timed(POD), cache.fetch_timed(POD)
        assert (first.origin, again.origin) == (Origin.COMPILED, Origin.HIT)
        assert first.compile_seconds > 0
        assert again.compile_seconds == again.wait_seconds == 0
        assert again.template is first.template
        assert len(compiled) == 1

    def test_what_the_directory_holds(self, cache: TemplateCache, config: DatapathConfig) -> None:
        template = cache.fetch(POD)
        assert template.path == config.state / "templates" / template.hash / "bpf_lxc.o"
        assert {entry.name for entry in template.path.parent.iterdir()} == {
            "bpf_lxc.o",
            "ep_config.h",
            "netdev_config.h",
            "node_config.h",
        }

    @pytest.mark.parametrize(
        "other",
        [
            replace(POD, id=2),
            replace(POD, ipv4=IPv4Address("10.0.0.3")),
            replace(POD, ipv6=None),
            replace(POD, node_mac="0a:00:00:00:00:ff", mac="0a:00:00:00:00:fe"),
            replace(POD, identity=1 << 24),
            replace(POD, labels=frozenset({"k8s:app=x"})),
            replace(POD, generation=77),
            replace(POD, ifname="lxcother"),
        ],
        ids=["id", "ipv4", "ipv6", "mac", "identity", "labels", "generation", "ifname"],
    )
    def test_substituted_values_never_compile(self, cache: TemplateCache, compiled: Compiled, other: Endpoint) -> None:
        assert cache.fetch(POD) is cache.fetch(other)
        assert len(compiled) == 1

    @pytest.mark.parametrize(
        "other",
        [
            POD.with_endpoint_routes(True),
            replace(POD, options=(("DEBUG", "1"),)),
            replace(POD, labels=frozenset({LABEL_HOST})),
        ],
        ids=["endpoint-routes", "option", "host"],
    )
    def test_what_the_compiler_sees_compiles(self, cache: TemplateCache, compiled: Compiled, other: Endpoint) -> None:
        assert cache.fetch(POD).hash != cache.fetch(other).hash
        assert len(compiled) == 2
        cache.fetch(POD)
        cache.fetch(other)
        assert len(compiled) == 2

    def test_endpoint_routes_toggled_back_is_a_hit(self, cache: TemplateCache, compiled: Compiled) -> None:
        for routes in (False, True, False, True):
            cache.fetch(POD.with_endpoint_routes(routes))
        assert len(compiled) == 2

    def test_another_process_finds_the_object(self, make: Callable[[], TemplateCache], compiled: Compiled) -> None:
        first, second = make().fetch_timed(POD), make().fetch_timed(POD)
        assert (first.origin, second.origin) == (Origin.COMPILED, Origin.HIT)
        assert second.template.image.data == first.template.image.data
        assert len(compiled) == 1

    def test_clear_removes_everything(self, cache: TemplateCache, config: DatapathConfig, compiled: Compiled) -> None:
        cache.fetch(POD)
        cache.clear()
        assert not (config.state / "templates").exists()
        cache.clear()
        cache.fetch(POD)
        assert len(compiled) == 2

    def test_overlay(self, cache: TemplateCache, config: DatapathConfig, compiled: Compiled) -> None:
        template = cache.fetch_overlay()
        assert cache.fetch_overlay() is template
        assert compiled == [(Kind.OVERLAY, template.hash)]
        assert "cilium_calls_overlay_2" in template.image.spec.maps
        cache.update(replace(config, node=replace(NODE, encap_mac="02:00:00:00:00:06")))
        assert cache.fetch_overlay().hash != template.hash


class TestHash:
    """TesthashDatapath: what changes the hash and what does not."""

    def test_equal_inputs_equal_hash(self, config: DatapathConfig, compiler: Compiler, tmp_path: Path) -> None:
        elsewhere = replace(config, state=tmp_path / "other")
        assert TemplateCache(config, compiler=compiler).hash(POD) == TemplateCache(elsewhere, compiler=compiler).hash(
            POD
        )

    @pytest.mark.parametrize(
        "node",
        [
            replace(NODE, mtu=1400),
            replace(NODE, cilium_host_ifindex=33),
            replace(NODE, router_ipv6=IPv6Address("fd00::2")),
            replace(NODE, endpoint_routes=True),
            replace(NODE, options=(("ENABLE_HOST_FIREWALL", "1"),)),
            replace(NODE, encap_ifindex=None, encap_mac=None),
        ],
        ids=["mtu", "ifindex", "router", "endpoint-routes", "option", "tunnel"],
    )
    def test_node(self, cache: TemplateCache, config: DatapathConfig, node: NodeConfig) -> None:
        before = {cache.hash(POD), cache.hash(HOST_ENDPOINT)}
        cache.update(replace(config, node=node))
        after = {cache.hash(POD), cache.hash(HOST_ENDPOINT)}
        assert not before & after
        cache.update(replace(config, node=NODE))
        assert {cache.hash(POD), cache.hash(HOST_ENDPOINT)} == before

    def test_compiler_flags_and_defines(self, config: DatapathConfig, compiler: Compiler) -> None:
        caches = [
            TemplateCache(config, compiler=compiler),
            TemplateCache(config, compiler=replace(compiler, version="clang version 98.0")),
            TemplateCache(config, compiler=replace(compiler, mcpu="v2")),
            TemplateCache(replace(config, defines=(("X", "1"),)), compiler=compiler),
            TemplateCache(replace(config, defines=(("X", "2"),)), compiler=compiler),
        ]
        assert len({cache.hash(POD) for cache in caches}) == len(caches)

    def test_edited_source_compiles_again(
        self, cache: TemplateCache, config: DatapathConfig, compiled: Compiled
    ) -> None:
        first = cache.fetch(POD)
        utils = config.library / "lib/utils.h"
        before = utils.stat()
        # The same length and the same modification time: only the contents tell.
        utils.write_text(UTILS.replace("BSD/GPL", "MIT/GPL"))
        os.utime(utils, ns=(before.st_atime_ns, before.st_mtime_ns))
        second = cache.fetch(POD)
        assert second.hash != first.hash
        assert second.image.spec.license == "Dual MIT/GPL"
        utils.write_text(UTILS)
        assert cache.fetch(POD).hash == first.hash
        assert len(compiled) == 2

    def test_header_edited_under_the_compiler_compiles_again(
        self, config: DatapathConfig, compiler: Compiler, tmp_path: Path
    ) -> None:
        """The hash is that of the old text when the compiler begins: nothing of the new one gets its name."""
        config = replace(config, object_cache=tmp_path / "objects")
        old = TemplateCache(config, compiler=compiler).hash(POD)
        edited: list[str] = []

        def edit_once(_: Kind, name: str) -> None:
            if not edited:
                (config.library / "lib/utils.h").write_text(UTILS.replace("BSD/GPL", "MIT/GPL"))
            edited.append(name)

        found = TemplateCache(config, compiler=compiler, on_compile=edit_once).fetch_timed(POD)
        assert found.template.image.spec.license == "Dual MIT/GPL"
        assert edited == [old, found.template.hash]
        assert found.origin is Origin.COMPILED
        assert not (config.templates / old / "bpf_lxc.o").exists()
        assert len(list((tmp_path / "objects").iterdir())) == 1
        # The old text is compiled anew, on this node and on another one.
        (config.library / "lib/utils.h").write_text(UTILS)
        for state in (config.state, tmp_path / "other"):
            again = TemplateCache(replace(config, state=state), compiler=compiler).fetch(POD)
            assert (again.hash, again.image.spec.license) == (old, "Dual BSD/GPL")

    def test_header_edited_and_put_back_under_the_compiler(self, config: DatapathConfig, compiler: Compiler) -> None:
        """The digest is the old one before and after; the compiler has read neither, or both."""
        utils = config.library / "lib/utils.h"
        compiled: list[str] = []

        def edit_and_put_back(_: Kind, name: str) -> None:
            if not compiled:
                utils.write_text("")
                utils.write_text(UTILS)
            compiled.append(name)

        template = TemplateCache(config, compiler=compiler, on_compile=edit_and_put_back).fetch(POD)
        assert compiled == [template.hash, template.hash]

    def test_half_saved_header_is_no_error_once_it_is_whole(self, config: DatapathConfig, compiler: Compiler) -> None:
        utils, texts = config.library / "lib/utils.h", [UTILS[: len(UTILS) // 2], UTILS]
        compiled: list[str] = []

        def half(_: Kind, name: str) -> None:
            if texts:
                utils.write_text(texts.pop(0))
            compiled.append(name)

        assert TemplateCache(config, compiler=compiler, on_compile=half).fetch(POD).path.exists()
        assert len(compiled) == 3

    def test_header_that_never_rests_is_an_error(self, config: DatapathConfig, compiler: Compiler) -> None:
        compiled: list[str] = []

        def edit(_: Kind, name: str) -> None:
            with (config.library / "lib/utils.h").open("a") as file:
                file.write("\n")
            compiled.append(name)

        cache = TemplateCache(config, compiler=compiler, on_compile=edit)
        with pytest.raises(CompileError, match="library changed during each of 3 compilations"):
            cache.fetch(POD)
        assert len(compiled) == 3
        assert not list(config.state.rglob("*.o"))

    def test_other_files_may_come_and_go_under_the_compiler(self, config: DatapathConfig, compiler: Compiler) -> None:
        compiled: list[str] = []

        def make_notes(_: Kind, name: str) -> None:
            (config.library / "lib" / f"notes-{len(compiled)}.txt").write_text("")
            compiled.append(name)

        TemplateCache(config, compiler=compiler, on_compile=make_notes).fetch(POD)
        assert len(compiled) == 1

    def test_new_and_removed_source(self, cache: TemplateCache, config: DatapathConfig) -> None:
        before = cache.hash(POD)
        extra = config.library / "lib/extra.h"
        extra.write_text("")
        assert cache.hash(POD) != before
        extra.unlink()
        assert cache.hash(POD) == before

    def test_files_that_are_no_source(self, cache: TemplateCache, config: DatapathConfig) -> None:
        before = cache.hash(POD)
        (config.library / "notes.txt").write_text("x")
        (config.library / ".#bpf_lxc.c").symlink_to("nobody@nowhere:1")
        assert cache.hash(POD) == before


class TestSubstitution:
    def test_pod(self, cache: TemplateCache) -> None:
        template = cache.fetch(POD)
        sub = template.substitution(POD)
        assert sub.names == {
            "cilium_calls_65535": "cilium_calls_01332",
            "cilium_policy_65535": "cilium_policy_01332",
        }
        patched = template.image.patched(sub)
        assert read_object(patched).spec == template.image.spec.substitute(sub)
        assert len(patched) == len(template.image.data)

    def test_device(self, cache: TemplateCache) -> None:
        template = cache.fetch(HOST_ENDPOINT)
        assert template.kind is Kind.HOST
        spec = template.image.spec.substitute(template.device_substitution(HOST_ENDPOINT, "eth0", 12, POD.node_mac))
        assert spec.maps.keys() == {"cilium_calls_netdev_00012", "cilium_policy_00007"}

    def test_missing_calls_map_is_not_passed_over(self, cache: TemplateCache, config: DatapathConfig) -> None:
        (config.library / "bpf_lxc.c").write_text(LXC.replace("CALLS(CALLS_MAP)", "CALLS(calls)"))
        template = cache.fetch(POD)
        with pytest.raises(ObjectError, match="cilium_calls_65535"):
            template.image.spec.substitute(template.substitution(POD))


class TestParallel:
    """TestobjectCacheParallel: the number of compilations equals the number of distinct templates."""

    @pytest.mark.parametrize("distinct", [1, 2, 8])
    def test_threads(self, cache: TemplateCache, compiled: Compiled, distinct: int) -> None:
        start = threading.Barrier(8)

        def fetch(number: int) -> Fetched:
            start.wait()
            options = (("VARIANT", str(number % distinct)),)
            return cache.fetch_timed(replace(POD, id=number + 1, options=options))

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(fetch, range(8)))
        assert len(compiled) == len(set(compiled)) == distinct
        assert Counter(r.origin for r in results)[Origin.COMPILED] == distinct
        assert len({id(r.template) for r in results}) == distinct

    def test_those_who_wait_say_so(self, config: DatapathConfig, compiler: Compiler, tmp_path: Path) -> None:
        """One waits for a thread, one, as another process would, for the directory."""
        gate = tmp_path / "gate"
        cache = TemplateCache(config, compiler=slow(compiler, tmp_path, gate))
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(cache.fetch_timed, POD)
            wait_for(Path(f"{gate}.waiting").exists, "clang starts")
            watched = [WatchedEvent(), WatchedEvent()]
            other = TemplateCache(config, compiler=slow(compiler, tmp_path, gate))
            second, third = (
                pool.submit(c.fetch_timed, replace(POD, id=2), cancel=event)
                for c, event in zip((cache, other), watched, strict=True)
            )
            wait_for(lambda: all(event.waited for event in watched), "the others wait")
            gate.touch()
            assert first.result().origin is Origin.COMPILED
        for waiter in (second, third):
            assert waiter.result().origin is Origin.WAITED
            assert waiter.result().wait_seconds > 0
            assert waiter.result().compile_seconds == 0
        assert second.result().template is first.result().template

    def test_different_hashes_compile_at_the_same_time(
        self, config: DatapathConfig, compiler: Compiler, tmp_path: Path
    ) -> None:
        both = threading.Barrier(2)

        def meet(kind: Kind, name: str) -> None:
            # If one compilation kept the other from starting, the barrier would break.
            both.wait(30)

        cache = TemplateCache(config, compiler=compiler, on_compile=meet)
        with ThreadPoolExecutor(2) as pool:
            for result in [pool.submit(cache.fetch, endpoint) for endpoint in (POD, HOST_ENDPOINT)]:
                result.result()

    def test_processes(self, config: DatapathConfig, compiler: Compiler, tmp_path: Path) -> None:
        gate, marks = tmp_path / "gate", tmp_path / "marks"
        marks.mkdir()
        argv = process_argv(config, slow(compiler, tmp_path, gate).path, marks)
        running = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        try:
            wait_for(Path(f"{gate}.waiting").exists, "clang starts")
            wait_for(lambda: len(list(marks.iterdir())) == 2, "the others wait")
            gate.touch()
            outcomes = [process.communicate(timeout=60)[0].strip() for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        assert sorted(outcomes) == ["compiled", "waited", "waited"]


class WatchedEvent(threading.Event):
    """Tells when somebody who waits for another's template looked at it."""

    def __init__(self, mark: Path | None = None) -> None:
        super().__init__()
        self.waited = False
        self.mark = mark

    def wait(self, timeout: float | None = None) -> bool:
        self.waited = True
        if self.mark is not None:
            self.mark.touch()
        return super().wait(timeout)


def process_argv(config: DatapathConfig, clang: Path, marks: Path) -> list[str]:
    script = "import sys; from tests.datapath.build.test_templates import fetch_in_process as f; f(*sys.argv[1:])"
    return [sys.executable, "-c", script, *map(str, (config.library, config.state, clang, marks))]


def fetch_in_process(library: str, state: str, clang: str, marks: str) -> None:
    """Fetch in a process of its own and print how it went; a mark says that it waits."""
    config = DatapathConfig(Path(library), Path(state), Path("/none"), Path("/none"), NODE)
    compiler = Compiler(Path(clang), "clang version 16.0.0")
    cancel = WatchedEvent(Path(marks) / str(os.getpid()))
    print(TemplateCache(config, compiler=compiler).fetch_timed(POD, cancel=cancel).origin.value)


class TestTrouble:
    def test_missing_file_is_compiled_again(self, cache: TemplateCache, compiled: Compiled) -> None:
        template = cache.fetch(POD)
        template.path.unlink()
        again = cache.fetch_timed(POD)
        assert again.origin is Origin.COMPILED
        assert template.path.exists()
        shutil.rmtree(template.path.parent)
        assert cache.fetch(POD).path.exists()
        assert len(compiled) == 3

    def test_damaged_file_is_compiled_again(self, make: Callable[[], TemplateCache], compiled: Compiled) -> None:
        path = make().fetch(POD).path
        path.write_bytes(path.read_bytes()[:100])
        assert make().fetch_timed(POD).origin is Origin.COMPILED
        assert len(compiled) == 2

    def test_directory_removed_during_the_compilation(self, config: DatapathConfig, compiler: Compiler) -> None:
        removed: Compiled = []
        cache: TemplateCache

        def remove_once(kind: Kind, name: str) -> None:
            if not removed:
                shutil.rmtree(cache.directory / name)
            removed.append((kind, name))

        cache = TemplateCache(config, compiler=compiler, on_compile=remove_once)
        assert cache.fetch(POD).path.exists()
        assert len(removed) == 2

    def test_failure_leaves_no_object_and_is_not_remembered(
        self, cache: TemplateCache, config: DatapathConfig, compiled: Compiled
    ) -> None:
        source = config.library / "bpf_lxc.c"
        source.write_text(LXC + "int broken(void) { return nothing; }\n")
        for _ in range(2):
            with pytest.raises(CompileError, match=rf"failed to compile bpf_lxc\.o: {source}:11:\d+: error: "):
                cache.fetch(POD)
        assert not list(config.state.rglob("*.o"))
        assert len(compiled) == 2
        source.write_text(LXC)
        cache.fetch(POD)

    def test_who_waited_for_a_failure_gets_it_too(
        self, config: DatapathConfig, compiler: Compiler, tmp_path: Path
    ) -> None:
        (config.library / "bpf_lxc.c").write_text("#error no such luck\n")
        gate = tmp_path / "gate"
        compiled: Compiled = []
        cache = TemplateCache(
            config,
            compiler=slow(compiler, tmp_path, gate),
            on_compile=lambda kind, name: compiled.append((kind, name)),
        )
        waiting = [WatchedEvent(), WatchedEvent()]
        with ThreadPoolExecutor(3) as pool:
            results = [pool.submit(cache.fetch, POD)]
            wait_for(Path(f"{gate}.waiting").exists, "clang starts")
            results += [pool.submit(cache.fetch, POD, cancel=event) for event in waiting]
            wait_for(lambda: all(event.waited for event in waiting), "the others wait")
            gate.touch()
            for result in results:
                with pytest.raises(CompileError, match="no such luck"):
                    result.result()
        assert len(compiled) == 1

    def test_cancelled_compilation_leaves_nothing_usable_and_no_waiter_behind(
        self, config: DatapathConfig, compiler: Compiler, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        cache = TemplateCache(config, compiler=slow(compiler, tmp_path, gate))
        cancel = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(cache.fetch, POD, cancel=cancel)
            wait_for(Path(f"{gate}.waiting").exists, "clang starts")
            second = pool.submit(cache.fetch, POD)
            cancel.set()
            with pytest.raises(Cancelled):
                first.result()
            assert not list(config.state.rglob("*.o"))
            gate.touch()
            assert second.result().path.exists()

    def test_cancelled_while_waiting_for_another(
        self, config: DatapathConfig, compiler: Compiler, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        slow_compiler = slow(compiler, tmp_path, gate)
        # One waits for a thread's lock, the other, as another process would, for the directory's.
        cache, other = (TemplateCache(config, compiler=slow_compiler) for _ in range(2))
        cancels = [WatchedEvent(), WatchedEvent()]
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(cache.fetch, POD)
            wait_for(Path(f"{gate}.waiting").exists, "clang starts")
            pairs = zip((cache, other), cancels, strict=True)
            waiting = [pool.submit(c.fetch, POD, cancel=cancel) for c, cancel in pairs]
            wait_for(lambda: all(cancel.waited for cancel in cancels), "both wait")
            for cancel in cancels:
                cancel.set()
            for future in waiting:
                with pytest.raises(Cancelled):
                    future.result()
            gate.touch()
            assert first.result().path.exists()

    def test_killed_process_leaves_nothing_usable(
        self, cache: TemplateCache, config: DatapathConfig, compiler: Compiler, tmp_path: Path, compiled: Compiled
    ) -> None:
        gate = tmp_path / "gate"
        process = subprocess.Popen(process_argv(config, slow(compiler, tmp_path, gate).path, tmp_path), cwd=ROOT)
        try:
            wait_for(Path(f"{gate}.waiting").exists, "clang starts")
        finally:
            process.kill()
            process.wait()
            gate.touch()
        assert not list((config.state / "templates").glob("*/*.o"))
        same = TemplateCache(
            config,
            compiler=Compiler(compiler.path, "clang version 16.0.0"),
            on_compile=lambda kind, name: compiled.append((kind, name)),
        )
        template = same.fetch(POD)
        assert len(compiled) == 1
        assert not [entry for entry in template.path.parent.iterdir() if entry.name.startswith(".")]

    def test_state_that_cannot_be_written(self, config: DatapathConfig, compiler: Compiler) -> None:
        config.state.write_text("a file, no directory")
        with pytest.raises(CompileError, match=r"failed to create template directory: .*Not a directory"):
            TemplateCache(config, compiler=compiler).fetch(POD)

    def test_missing_library(self, config: DatapathConfig, compiler: Compiler, tmp_path: Path) -> None:
        cache = TemplateCache(replace(config, library=tmp_path / "nowhere"), compiler=compiler)
        with pytest.raises(CompileError, match=r"no such source file: .*nowhere/bpf_lxc\.c"):
            cache.fetch(POD)


def test_what_an_endpoint_loads_is_its_own_whoever_came_before(cache: TemplateCache) -> None:
    """Names are remembered from load to load, constants are not; two endpoints have neither in common."""
    template = cache.fetch(POD)
    whole = template.image.spec
    for endpoint in (POD, replace(POD, id=POD.id + 1, generation=8), replace(POD, generation=9), POD):
        substitution = template.substitution(endpoint)
        for wanted in (whole, replace(whole, programs={})):
            assert template.own_spec(wanted, substitution) == wanted.substitute(substitution, strict=False)
    own, other = (template.own_spec(whole, template.substitution(replace(POD, id=number))) for number in (5, 6))
    assert own.maps.keys() & other.maps.keys() == set()

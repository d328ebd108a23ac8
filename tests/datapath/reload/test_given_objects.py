"""Reloads of objects that other projects compile: variables, functions, maps that take the pin's place."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.errors import ObjectError, VerifierError
from datapath.kernel import bpf
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_by_id
from datapath.kernel.map import open_pin
from datapath.kernel.pins import map_id
from datapath.object.reader import read_object
from datapath.reload.outcome import Outcome
from datapath.reload.transaction import Observer
from lab.bench.objects import object_template, plan_with_object
from lab.scenario.gate import Gate
from tests.datapath import support
from tests.datapath.support import Injected, Rig

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

pytestmark = pytest.mark.privileged

SOURCE = r"""
const volatile __u32 VERDICT = 3;
volatile __u32 runs;
static __attribute__((noinline)) int twice(int x) { return 2 * x; }
int tail_one(struct __sk_buff *skb);
#ifdef REFUSED
__section("tc/refused") int tail_refused(struct __sk_buff *skb) { return *(int *)8; }
# define MORE [0] = (void *)&tail_refused,
#else
# define MORE
#endif
struct { __uint(type, 3); __type(key, __u32); __type(value, __u32); __uint(max_entries, 2); __uint(pinning, 16);
         __array(values, int ()); } calls __section(".maps") = { .values = { MORE [1] = (void *)&tail_one } };
struct { __uint(type, 1); __type(key, __u32); __type(value, __u64); __uint(max_entries, 4); __uint(pinning, 1); }
  shared __section(".maps");
__section("tc/tail") int tail_one(struct __sk_buff *skb) { return twice(VERDICT) + ++runs; }
__section("tc") int cil_from_container(struct __sk_buff *skb) {
    __u32 key = 1;
    if (map_lookup_elem(&shared, &key)) return 99;
    tail_call(skb, &calls, 1);
    return 1;
}
"""
PACKET = bytes(64)


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=1, devices=("eth0",)) as made:
        yield made


def reload(rig: Rig, path: Path, *, observer: Observer | None = None) -> Outcome:
    return rig.loader.apply(plan_with_object(object_template(path), rig.plan("pod-1")), observer=observer)


def run(rig: Rig) -> int:
    (entry,) = rig.attached(rig.node.endpoint("pod-1").ifname, Direction.INGRESS)
    with program_by_id(entry.program_id) as fd:
        return bpf.prog_test_run(fd, PACKET).retval


def test_variables_functions_and_slots_work_after_a_reload(rig: Rig, compile_c: Compile) -> None:
    reload(rig, compile_c(SOURCE))
    for _ in range(50):
        assert run(rig) > 2 * 3  # packets of the interface count as well
    reload(rig, compile_c(SOURCE))
    assert 2 * 3 < run(rig) < 50, "a load has variables of its own"


def test_a_map_that_takes_the_pins_place_is_new_at_every_reload(rig: Rig, compile_c: Compile) -> None:
    reload(rig, compile_c(SOURCE))
    before, shared = map_id(rig.pin("calls")), map_id(rig.pin("shared"))
    outcome = reload(rig, compile_c(SOURCE))
    assert map_id(rig.pin("calls")) != before
    assert map_id(rig.pin("shared")) == shared
    assert (outcome.migrated, rig.leftovers()) == ((), [])
    with open_pin(rig.pin("calls")) as calls:
        assert [struct.unpack("=I", key)[0] for key, _ in calls.items()] == [1]


@pytest.mark.parametrize("step", ["open maps", "load programs", "fill arrays", "commit"])
def test_its_pin_comes_back_when_the_reload_fails(rig: Rig, compile_c: Compile, step: str) -> None:
    reload(rig, compile_c(SOURCE))
    before, pinned = rig.state(), map_id(rig.pin("calls"))
    with pytest.raises(Injected):
        reload(rig, compile_c(SOURCE), observer=Gate(support.inject, before=step))
    assert before.differences(rig.state()) == []
    assert (map_id(rig.pin("calls")), rig.leftovers()) == (pinned, [])
    assert run(rig) > 2 * 3


def test_a_refused_program_is_explained_by_its_source(rig: Rig, compile_c: Compile) -> None:
    path = compile_c(SOURCE, REFUSED="1")
    with pytest.raises(VerifierError, match=r"program tail_refused .*: at snippet\d+\.c:\d+ `.*return \*\(int \*\)8;"):
        reload(rig, path)
    assert rig.leftovers() == []


def test_a_reload_without_the_btf_that_the_kernel_refuses_says_so(rig: Rig, compile_c: Compile) -> None:
    path = compile_c(SOURCE)
    template = object_template(path)
    spec = template.image.spec
    damaged = replace(template, image=replace(template.image, spec=replace(spec, btf=spec.btf[:-1] + b"x")))
    outcome = rig.loader.apply(plan_with_object(damaged, rig.plan("pod-1")))
    (warning,) = outcome.warnings
    assert "was loaded without its BTF, which the kernel refuses: BPF_BTF_LOAD: " in warning
    assert run(rig) > 2 * 3
    assert reload(rig, path).warnings == ()


def test_an_object_that_cannot_be_loaded_whole_is_refused_before_anything_is_done(rig: Rig, compile_c: Compile) -> None:
    path = compile_c(SOURCE + '__section("kprobe/x") int other(void *c) { return 0; }')
    assert read_object(path).spec.programs["other"].problem
    before = rig.state()
    with pytest.raises(ObjectError, match=r"program other .* is of kind kprobe, which is not supported"):
        reload(rig, path)
    assert before.differences(rig.state()) == []

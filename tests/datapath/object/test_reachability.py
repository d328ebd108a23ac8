"""reachability.py: what packets can reach is kept, whatever way the instructions leave open."""

from __future__ import annotations

import struct

import pytest

from datapath.base.bpftypes import MapType
from datapath.object.reachability import pruned, reached, ways
from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec
from tests.datapath.object.test_tailcalls import ARRAY, CALL, EXIT, slot

CALLS, POLICY = "cilium_calls_00123", "cilium_call_policy"


def jump(number: int) -> bytes:
    return ARRAY + slot(number) + CALL + EXIT


def program(
    name: str, insns: bytes = EXIT, *refs: tuple[int, str], place: tuple[int, int] | None = None
) -> ProgramSpec:
    section = "tc" if place is None else f"{place[0]}/{place[1]}"
    return ProgramSpec(name, section, 3, insns, map_refs=refs, slot=place)


def collection(*programs: ProgramSpec, maps: tuple[MapSpec, ...] = ()) -> CollectionSpec:
    """Return an object with a calls map and an array that is shared, their slots as the programs say."""
    ids = {CALLS: 2, POLICY: 1}
    arrays = [
        MapSpec(
            name,
            MapType.PROG_ARRAY,
            4,
            4,
            50,
            pinned=True,
            id=ident,
            contents={p.slot[1]: p.name for p in programs if p.slot is not None and p.slot[0] == ident},
        )
        for name, ident in ids.items()
    ]
    return CollectionSpec(
        "test.o", {m.name: m for m in (*arrays, *maps)}, {p.name: p for p in programs}, {}, b"", "GPL"
    )


def test_tail_calls_are_followed_and_the_rest_is_left() -> None:
    spec = collection(
        program("in", jump(7), (0, CALLS)),
        program("out", jump(9), (0, CALLS)),
        program("seven", jump(8), (0, CALLS), place=(2, 7)),
        program("eight", jump(7), (0, CALLS), place=(2, 8)),
        program("nine", place=(2, 9)),
    )
    assert reached(spec, ["in"]) == {"in", "seven", "eight"}
    assert reached(spec, ["in", "out"]) == set(spec.programs)
    assert reached(spec, ["nowhere"]) == set()
    left = pruned(spec, ["in"])
    assert list(left.programs) == ["in", "seven", "eight"]
    assert left.maps[CALLS].contents == {7: "seven", 8: "eight"}
    assert pruned(spec, ["in", "out"]) is spec
    assert ways(spec) == {
        "in": ("in",), "out": ("out",), "seven": ("in",), "eight": ("in",), "nine": ("out",),
    }  # fmt: skip


def test_what_others_jump_to_is_reached() -> None:
    spec = collection(
        program("in"),
        program("policy", jump(7), (0, CALLS), place=(1, 123)),
        program("seven", place=(2, 7)),
        program("eight", place=(2, 8)),
    )
    assert reached(spec, ["in"]) == {"in", "policy", "seven"}
    assert ways(spec)["seven"] == (POLICY,)
    assert ways(spec)["eight"] == ()


MOVED_ARRAY = struct.pack("<BBhi", 0xBF, 0x72, 0, 0)  # r2 = r7
LOADED_SLOT = struct.pack("<BBhi", 0x61, 0x63, 8, 0)  # r3 = *(u32 *)(r6 + 8)
FETCHED_SLOT = slot(7) + struct.pack("<BBhi", 0xDB, 0x36, 0, 1)  # r3 = atomic_fetch_add(r6, r3)
CLOBBERED = slot(7) + struct.pack("<BBhi", 0x85, 0, 0, 1)  # a call leaves nothing in r3


@pytest.mark.parametrize(
    ("insns", "at"),
    [
        (LOADED_SLOT + ARRAY + CALL + EXIT, 1),
        (MOVED_ARRAY + LOADED_SLOT + CALL + EXIT, None),
        (FETCHED_SLOT + ARRAY + CALL + EXIT, 2),
        (CLOBBERED + ARRAY + CALL + EXIT, 2),
        (ARRAY + CALL + EXIT, 0),
        (CALL + EXIT, None),
    ],
    ids=["a slot in memory", "another register", "a slot fetched", "after a call", "an argument", "both arguments"],
)
def test_what_is_not_known_keeps_everything(insns: bytes, at: int | None) -> None:
    refs = () if at is None else ((at, CALLS),)
    others = [program(f"to_{number}", place=(2, number)) for number in (7, 8)]
    spec = collection(program("in", insns, *refs), *others)
    assert reached(spec, ["in"]) == set(spec.programs)


@pytest.mark.parametrize("insns", [MOVED_ARRAY + slot(7) + CALL + EXIT, slot(7) + CALL + EXIT])
def test_an_unknown_array_is_each_array(insns: bytes) -> None:
    others = [program(f"to_{number}", place=(2, number)) for number in (7, 8)]
    assert reached(collection(program("in", insns), *others), ["in"]) == {"in", "to_7"}


def test_maps_that_only_unreached_programs_use_go_unless_they_are_pinned() -> None:
    hashes = tuple(
        MapSpec(name, MapType.HASH, 4, 4, 1, pinned=name == "pinned") for name in ("mine", "other", "pinned")
    )
    inner = MapSpec("inner", MapType.HASH, 4, 4, 1)
    outer = MapSpec("outer", MapType.ARRAY_OF_MAPS, 4, 4, 1, inner=inner, contents={0: "inner"})
    spec = collection(
        program("in", EXIT, (0, "mine"), (0, "outer")),
        program("out", EXIT, (0, "other"), (0, "pinned")),
        maps=(*hashes, outer, inner),
    )
    assert set(pruned(spec, ["in"]).maps) == {CALLS, POLICY, "mine", "pinned", "outer", "inner"}
    assert set(pruned(spec, ["out"]).maps) == {CALLS, POLICY, "other", "pinned"}

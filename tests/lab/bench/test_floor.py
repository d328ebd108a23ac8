from __future__ import annotations

from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.object.spec import CollectionSpec, DataSection, MapSpec
from lab.bench.floor import Floor, FloorUnavailable

MAPS = {
    "variables": MapSpec(".data", MapType.ARRAY, 4, 8, 1),
    "spin lock": MapSpec("locked", MapType.ARRAY, 4, 8, 1, value_type=3, needs_types=True),
    "new pin": MapSpec("replaced", MapType.ARRAY, 4, 8, 1, pinned=True, replace_pin=True),
}


@pytest.mark.parametrize("item", MAPS.values(), ids=MAPS)
def test_a_map_that_the_bare_calls_cannot_make_is_named(item: MapSpec) -> None:
    sections = {".data": DataSection(".data", 8)}
    spec = CollectionSpec("some.o", {item.name: item}, {}, {}, bytes(8), "GPL", sections)
    with pytest.raises(FloorUnavailable, match=f"some.o: map {item.name} needs more than the bare calls"):
        Floor(spec, Path(), Path(), "eth0", ())

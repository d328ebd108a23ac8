"""Layouts of the maps of releases, recorded from the BTF of their objects: names, offsets and sizes are facts.

To record one more, compile the pod's programs of a checkout (-g, with the features whose maps are wanted) and run

    .venv/bin/python -m tests.lab.abi.recorded OBJECT [NAME=NAME ...] > tests/lab/abi/releases/RELEASE.json

`NAME=NAME` gives a map its usual name, where the checkout's default headers have none for it. What these headers add to
a name (test_, 65535) goes by itself.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datapath.object import btf, elffile
from datapath.object.btf import TypeKind
from lab.abi.record import Record

DIRECTORY = Path(__file__).parent / "releases"

RECORDED = (
    *("cilium_lxc", "cilium_ipcache", "cilium_ipcache_v2", "cilium_tunnel_map", "cilium_metrics"),
    *("cilium_policy", "cilium_policy_v2", "cilium_policystats"),
    *("cilium_ct_tcp4", "cilium_ct_tcp6", "cilium_ct_any4", "cilium_ct_any6"),
    *("cilium_node_map", "cilium_node_map_v2", "cilium_auth", "cilium_auth_map", "cilium_l2_responder_v4"),
    *("cilium_ratelimit", "cilium_ratelimit_metrics"),
)

Layout = tuple[Record, Record]
"""The structs of a map's key and value."""


def releases() -> list[str]:
    """Return the releases that are recorded."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def layouts_of(release: str) -> dict[str, Layout]:
    """Return the layouts of a release's maps by name."""
    document = json.loads((DIRECTORY / f"{release}.json").read_text())
    return {name: (_record(item["key"]), _record(item["value"])) for name, item in document.items()}


def of_object(data: bytes) -> Iterator[tuple[str, Layout]]:
    """Yield name and layout of each map of an object that has types."""
    section = elffile.read("object", data).section(".BTF")
    assert section is not None, "compile with -g"
    types = btf.parse(elffile.read("object", data).content(section))
    for ident, _, _ in types.variables(types[types.find(".maps", TypeKind.DATASEC)]):
        name = types[ident].name
        found = btf.map_definition(types, name)
        if found.key_type and found.value_type:
            yield name, (Record.of_type(types, found.key_type), Record.of_type(types, found.value_type))


def main(path: str, *renamed: str) -> None:
    """Print the recorded maps of an object."""
    names = dict(pair.split("=") for pair in renamed)
    document = {}
    for name, (key, value) in of_object(Path(path).read_bytes()):
        usual = names.get(name) or re.sub(r"^test_|_(global|65535)$", "", name)
        if usual in RECORDED:
            document[usual] = {"key": _document(key), "value": _document(value)}
    print(_text(document))


def _document(record: Record) -> dict[str, Any]:
    return {"struct": record.struct, "size": record.size, "fields": record.fields}


def _record(document: Mapping[str, Any]) -> Record:
    fields = {name: (int(offset), int(bits)) for name, (offset, bits) in document["fields"].items()}
    return Record(document["struct"], document["size"], fields)


def _text(document: object) -> str:
    """Return JSON with a line for each struct."""
    text = json.dumps(document, indent=1, sort_keys=True)
    text = re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text)
    return re.sub(r"\{\n[^{}]*\}", lambda found: re.sub(r"\n\s+", " ", found[0]).replace("\n", " "), text)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""epheader.py: what is written of an endpoint is all that is needed to know it again, and nothing else is believed."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.base.statefile import WrongContent
from datapath.base.timing import VerifyTimes
from datapath.build.epheader import header_text, parse_header
from datapath.build.headers import TEMPLATE_GENERATION
from datapath.build.template import Kind, Template
from datapath.endpoint import Endpoint
from datapath.object.reader import ObjectImage
from datapath.object.spec import CollectionSpec, MapSpec
from tests.datapath.values import HOST, POD

ENDPOINTS = {
    "pod": POD,
    "host": HOST,
    "endpoint-routes": POD.with_endpoint_routes(True),
    "one-family": replace(POD, ipv6=None, ifindex=77),
    "options": replace(POD, options=(("DROP_NOTIFY", "0"), ("X", "*/"))),
    "odd-names": replace(POD, ifname="lxc\udcff.*", labels=frozenset({"*/ #error", "k8s:a=ü"})),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
def test_an_endpoint_is_known_again(endpoint: Endpoint) -> None:
    assert parse_header(header_text(endpoint)) == replace(endpoint, generation=TEMPLATE_GENERATION)


def test_another_generation_is_the_same_header() -> None:
    assert header_text(POD) == header_text(replace(POD, generation=10))


def test_the_header_has_the_names_that_the_maps_of_the_object_have() -> None:
    for name in ("cilium_policy_65535", "cilium_policy_v2_65535"):
        spec = CollectionSpec("o", {name: MapSpec(name, 11, 12, 24, 1)}, {}, {}, b"", "")
        template = Template("", Kind.LXC, Path(), ObjectImage(b"", spec, {}, {}), VerifyTimes())
        text = header_text(POD, policies=template.policies).decode()
        assert f"#define POLICY_MAP {name.replace('65535', f'{POD.id:05d}')}\n" in text
        assert parse_header(text.encode()) == replace(POD, generation=TEMPLATE_GENERATION)


LEFT_OUT = "left out"


def encoded(**changes: object) -> bytes:
    """Return a header whose line is damaged in some fields."""
    present = header_text(POD).split(b"\n")[1]
    document = json.loads(base64.b64decode(present.partition(b":")[2])) | changes
    return line(json.dumps({name: value for name, value in document.items() if value != LEFT_OUT}).encode())


def line(document: bytes) -> bytes:
    """Return a header that says nothing else."""
    return b"/*\n * CILIUM_BASE64_1:" + base64.b64encode(document) + b"\n */\n"


DAMAGED = {
    "empty": (b"", "no line CILIUM_BASE64_"),
    "other-version": (b"/*\n * CILIUM_BASE64_2:e30=\n */\n", "version '2', this reloadlab reads version 1"),
    "cut-off": (header_text(POD)[:200] + b"\n", "is damaged"),
    "no-base64": (b" * CILIUM_BASE64_1:\xff\xfe\n", "is damaged"),
    "no-json": (b" * CILIUM_BASE64_1:e30\n", "is damaged"),
    "number-without-end": (line(b"9" * 5000), "is damaged"),
    "depth-without-end": (line(b"[" * 100_000), "is damaged"),
    "no-endpoint": (b" * CILIUM_BASE64_1:e30=\n", "no id"),
    "field-missing": (encoded(mac=LEFT_OUT), "no mac"),
    "id": (encoded(id=65535), "endpoint id 65535 is not 1 to 65534"),
    "ifindex": (encoded(ifindex=0), "interface index 0 is not positive"),
    "ifname": (encoded(ifname="../x"), "no slash"),
    "mac": (encoded(node_mac="1"), "'1' is not a MAC"),
}


@pytest.mark.parametrize(("content", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(WrongContent, match=said):
        parse_header(content)

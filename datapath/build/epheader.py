"""ep_config.h in an endpoint's state directory: what a later process needs to know the endpoint again.

One line of it holds the whole endpoint, encoded (pkg/endpoint/bpf.go, WriteHeader; restore.go, parseEndpoint); the rest
is for people. The generation is no part of it: it changes with every load, and the header only with the endpoint.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import asdict, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from datapath.base.mapnames import POLICY
from datapath.base.names import check_ifname
from datapath.base.statefile import WrongContent, parse_json, typed
from datapath.build.headers import TEMPLATE_GENERATION, endpoint_header
from datapath.endpoint import Endpoint
from datapath.errors import InvalidName

HEADER_FILE = "ep_config.h"

_PREFIX, _VERSION = "CILIUM_BASE64_", "1"
_LINE = re.compile(rb"^ \* CILIUM_BASE64_(?P<version>[^:\n]*):(?P<text>[^\n]*)$", re.MULTILINE)
_MOST_ID = 65534
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def header_text(endpoint: Endpoint, *, policies: str = POLICY) -> bytes:
    """Return the file's content; `policies` is how the names of policy maps begin."""
    return _text(replace(endpoint, generation=TEMPLATE_GENERATION), policies)


# Asked for by every load of the endpoint.
@lru_cache(maxsize=1024)
def _text(lasting: Endpoint, policies: str) -> bytes:
    document = json.dumps(asdict(lasting), default=_plain, sort_keys=True)
    line = f"/*\n * {_PREFIX}{_VERSION}:{base64.b64encode(document.encode()).decode()}\n */\n\n"
    return (line + endpoint_header(lasting, policies=policies)).encode(errors="surrogateescape")


def parse_header(content: bytes) -> Endpoint:
    """Return the endpoint of a header; WrongContent if it is not one that `header_text` has made."""
    found = _LINE.search(content)
    if found is None:
        raise WrongContent(f"it has no line {_PREFIX}")
    version = found["version"].decode(errors="replace")
    if version != _VERSION:
        raise WrongContent(f"it has version {version!r}, this reloadlab reads version {_VERSION}")
    try:
        document = parse_json(base64.b64decode(found["text"], validate=True))
    except (binascii.Error, WrongContent) as error:
        raise WrongContent(f"its line {_PREFIX} is damaged") from error
    endpoint = typed(Endpoint, document)
    _check(endpoint)
    return endpoint


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    raise TypeError(f"{value!r} has no form in JSON")


def _check(endpoint: Endpoint) -> None:
    """Refuse what becomes a path, a pin or an index, and cannot be one."""
    if not 0 < endpoint.id <= _MOST_ID:
        raise WrongContent(f"endpoint id {endpoint.id} is not 1 to {_MOST_ID}")
    if endpoint.ifindex is not None and endpoint.ifindex <= 0:
        raise WrongContent(f"interface index {endpoint.ifindex} is not positive")
    try:
        check_ifname(endpoint.ifname)
    except InvalidName as error:
        raise WrongContent(str(error)) from error
    for mac in (endpoint.mac, endpoint.node_mac):
        if not _MAC.fullmatch(mac):
            raise WrongContent(f"{mac!r} is not a MAC")

"""Constants as later releases have them: since 1.15 in `.rodata.config`, `__config_NAME`, each of its own width.

What they say is what the words of `.data` say at the reference commit (pkg/datapath/loader/template.go), under these
names or others. Which of them an object has, the object says.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from datapath.build.nodemacros import HOST_ENDPOINT_ID
from datapath.endpoint import NodeConfig
from datapath.errors import InvalidName
from datapath.object.spec import CONFIG_SECTION, CollectionSpec

_PREFIX = "__config_"
_WORD = 4
_ALSO = {
    "SECLABEL": ("SECLABEL_IPV4", "SECLABEL_IPV6", "security_label"),
    "NODE_MAC_1": ("THIS_INTERFACE_MAC_1",),
    "NODE_MAC_2": ("THIS_INTERFACE_MAC_2",),
    "LXC_ID": ("endpoint_id",),
    "LXC_IPV4": ("endpoint_ipv4",),
    "POLICY_VERDICT_LOG_FILTER": ("policy_verdict_log_filter",),
    "IPV4_MASQUERADE": ("nat_ipv4_masquerade",),
}
"""Further names of the same number."""

SECCTX_FROM_IPCACHE_DISABLED, SECCTX_FROM_IPCACHE_ENABLED = 1, 2
"""Zero is avoided: a constant of zero goes to .bss, where nothing can be substituted. Since 1.19 it is a bool."""


_MACROS = {
    "device_mtu": "MTU",
    "host_ep_id": "HOST_EP_ID",
    "trace_payload_len": "TRACE_PAYLOAD_LEN",
    "service_loopback_ipv4": "IPV4_LOOPBACK",
}
"""The macros of node_config.h that some of the node's words were before; an option may give them another value."""

_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|0|[1-9][0-9]*)[uUlL]*")


def node_words(node: NodeConfig, wanted: Container[str]) -> dict[str, int]:
    """Return what is the same in all objects of a node (NODE_CONFIG, which replaces macros of node_config.h).

    Only the `wanted` words; an option of the node sets the word that its macro was. InvalidName if its value is no
    number, which the C would take.
    """
    options = dict(node.options)
    words = {name: value for name, value in _words(node).items() if name in wanted}
    return words | {
        word: _number(name, options[name]) for word, name in _MACROS.items() if word in words and name in options
    }


def _number(name: str, value: str) -> int:
    found = _NUMBER.fullmatch(value.strip())
    if found is None:
        raise InvalidName(f"value of macro {name}", value, "a number: these sources have it as a constant")
    return int(found[1], 0)


def _words(node: NodeConfig) -> dict[str, int]:
    return {
        "router_ipv6": int.from_bytes(node.router_ipv6.packed, "little"),
        "service_loopback_ipv4": 0x12AFEA9,
        "trace_payload_len": 128,
        "trace_payload_len_overlay": 192,
        "host_ep_id": HOST_ENDPOINT_ID,
        "device_mtu": node.mtu,
    }


def config_words(
    words: Mapping[str, int], ifindex: int, node: NodeConfig | None, spec: CollectionSpec
) -> dict[str, int]:
    """Return the constants that an object has in that section, by name.

    `words` are those of the reference; `ifindex` is the interface's.
    """
    wanted = {name.removeprefix(_PREFIX) for name in spec.constants if name.startswith(_PREFIX)}
    found = dict(words) | ({} if node is None else node_words(node, wanted))
    for name, others in _ALSO.items():
        found |= dict.fromkeys(others, words[name]) if name in words else {}
    found |= dict.fromkeys(("THIS_INTERFACE_IFINDEX", "interface_ifindex"), ifindex)
    if "LXC_IP_4" in words:
        low, high = _halves(words)
        found |= {"LXC_IP_1": low, "LXC_IP_2": high, "endpoint_ipv6": low | high << 64}
    if "NODE_MAC_2" in words:
        found["interface_mac"] = words["NODE_MAC_1"] | words["NODE_MAC_2"] << 32
    if "SECCTX_FROM_IPCACHE" in words:
        found["secctx_from_ipcache"] = int(words["SECCTX_FROM_IPCACHE"] == SECCTX_FROM_IPCACHE_ENABLED)
    return {_PREFIX + name: value for name, value in found.items() if name in wanted}


def data_words(words: Mapping[str, int], spec: CollectionSpec) -> dict[str, int]:
    """Return the words of `.data` in the widths that an object has: in 1.14.18 an address is two of them, not four."""
    first = spec.constants.get("LXC_IP_1")
    if first is None or first.size == _WORD or "LXC_IP_4" not in words:
        return dict(words)
    low, high = _halves(words)
    return {name: value for name, value in words.items() if name not in ("LXC_IP_3", "LXC_IP_4")} | {
        "LXC_IP_1": low,
        "LXC_IP_2": high,
    }


def _halves(words: Mapping[str, int]) -> tuple[int, int]:
    low, high = (words[f"LXC_IP_{i}"] | words[f"LXC_IP_{i + 1}"] << 32 for i in (1, 3))
    return low, high


def has_config(spec: CollectionSpec) -> bool:
    """Tell whether an object has its constants in that section."""
    return CONFIG_SECTION in spec.sections

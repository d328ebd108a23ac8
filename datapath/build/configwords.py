"""Constants in `.rodata.config`, where programs have them since 1.15: `__config_NAME`, each of its own width.

What they say is what the words of `.data` say at the reference commit (pkg/datapath/loader/template.go), under these
names or others. Which of them an object has, the object says.
"""

from __future__ import annotations

from collections.abc import Mapping

from datapath.object.spec import CollectionSpec

CONFIG = ".rodata.config"
_PREFIX = "__config_"
_ALSO = {
    "SECLABEL": ("SECLABEL_IPV4", "SECLABEL_IPV6"),
    "NODE_MAC_1": ("THIS_INTERFACE_MAC_1",),
    "NODE_MAC_2": ("THIS_INTERFACE_MAC_2",),
}
"""Further names of the same number."""


def has_config(spec: CollectionSpec) -> bool:
    """Tell whether an object has its constants in that section."""
    return CONFIG in spec.sections


def config_words(words: Mapping[str, int], ifindex: int, spec: CollectionSpec) -> dict[str, int]:
    """Return the constants of an object by name, from the words of the reference and the interface's index."""
    found = dict(words)
    for name, others in _ALSO.items():
        found |= dict.fromkeys(others, words[name]) if name in words else {}
    found |= dict.fromkeys(("THIS_INTERFACE_IFINDEX", "interface_ifindex"), ifindex)
    if "LXC_IP_4" in words:
        halves = {f"LXC_IP_{i + 1}": words[f"LXC_IP_{2 * i + 1}"] | words[f"LXC_IP_{2 * i + 2}"] << 32 for i in (0, 1)}
        found |= halves
    return {_PREFIX + name: value for name, value in found.items() if _PREFIX + name in spec.constants}

"""Checks on names that become paths, interface names or pins."""

from __future__ import annotations

import os
import re

from datapath.errors import InvalidName

IFNAMSIZ = 16
"""Length of an interface name in the kernel, its final NUL included (include/uapi/linux/if.h)."""

# isspace() of the kernel (lib/ctype.c) takes bytes, those of Latin-1: 0xa0 is one, and no other above 0x20.
_REFUSED = b"\0/: \t\n\v\f\r\xa0"
_LAB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def check_ifname(name: str) -> str:
    """Return `name` if the kernel would take it for an interface (net/core/dev.c: dev_valid_name)."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise InvalidName("interface name", name, "it is not text") from None
    if not 0 < length < IFNAMSIZ:
        raise InvalidName("interface name", name, f"it must have 1 to {IFNAMSIZ - 1} bytes")
    if name in (".", "..") or any(byte in _REFUSED for byte in os.fsencode(name)):
        raise InvalidName("interface name", name, "no slash, colon or white space")
    return name


def check_lab_name(name: str) -> str:
    """Return `name` if it can name a lab: it becomes a directory, and the prefix of a target such as lab/pod-1."""
    if not _LAB.fullmatch(name):
        raise InvalidName("lab name", name, "letters, digits, '-' and '_', at most 32, a letter or digit first")
    return name

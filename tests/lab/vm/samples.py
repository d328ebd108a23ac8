"""What several tests of virtual machines need."""

from __future__ import annotations

import struct


def kernel_image(release: str) -> bytes:
    """Return the head of an x86 image of that release."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x300 - 0x200)
    text = f"{release} (somebody@somewhere) #1 SMP".encode() + b"\0"
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head)

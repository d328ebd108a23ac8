"""One calls map and its pins: the names under which tests find them."""

from __future__ import annotations

import os

from datapath.kernel.pins import Pin

NAME = "cilium_calls_00101"
P, S, SS = ":pending", ":stale", ":stale:stale"


def names(pin: Pin) -> list[str]:
    return sorted(name.removeprefix(NAME) for name in os.listdir(pin.path.parent))

"""How numbers of things are told."""

from __future__ import annotations


def plural(number: int, thing: str) -> str:
    """Return such as `1 packet` or `1,200 packets`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"

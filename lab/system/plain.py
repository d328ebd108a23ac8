"""Texts that others wrote, such as another machine, made to print and do nothing else.

On a terminal, control characters move, hide and ask.
"""

from __future__ import annotations


def plain(text: str, *, keep: str = "") -> str:
    """Return the text with a blank for each character that does not print, but those in `keep`."""
    return text if text.isprintable() else "".join(each if each.isprintable() or each in keep else " " for each in text)

"""The shape of a JSON document: which keys a reader needs, and of which type their values are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from datapath.base.statefile import WrongContent

Shape = type | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A type, alternatives (a tuple), a list of one shape, or an object with the shapes of the keys that are needed."""

_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    dict: "an object",
    list: "a list",
}
_LARGEST = 1 << 63
"""Whole numbers have no end in JSON; nanoseconds and counts have."""


def check(value: object, shape: Shape, place: str = "") -> None:
    """Raise WrongContent unless a value has a shape; keys that the shape does not name may be there."""
    if isinstance(shape, tuple):
        _check_one_of(value, shape, place)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise WrongContent(f"{place or 'the document'} is not a list")
        for number, item in enumerate(value):
            check(item, shape[0], f"{place}[{number}]")
    elif isinstance(shape, Mapping):
        _check_keys(value, shape, place)
    elif not _fits(value, shape):
        raise WrongContent(f"{place or 'the document'} is not {_WORDS[shape]}")


def _check_keys(value: object, shape: Mapping[str, Shape], place: str) -> None:
    if not isinstance(value, dict):
        raise WrongContent(f"{place or 'the document'} is not an object")
    for name, inner in shape.items():
        path = f"{place}.{name}" if place else name
        if name not in value:
            raise WrongContent(f"no {path}")
        check(value[name], inner, path)


def _check_one_of(value: object, shapes: tuple[Shape, ...], place: str) -> None:
    """Raise what the last alternative says if none fits: it is the one with the most in it."""
    *others, last = shapes
    for shape in others:
        try:
            return check(value, shape, place)
        except WrongContent:
            continue
    check(value, last, place)


def _fits(value: object, kind: type) -> bool:
    # In Python, true is a number, and its JSON reader takes Infinity and NaN for numbers.
    if kind is float:
        return type(value) in (int, float) and abs(value) < _LARGEST and math.isfinite(value)  # type: ignore[arg-type]
    if kind is int:
        return type(value) is int and abs(value) < _LARGEST
    return type(value) is kind

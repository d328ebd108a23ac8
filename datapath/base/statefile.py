"""Files that keep state as JSON: written whole or not at all, read into typed values, one line for a damaged one."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from datapath.errors import ReloadlabError

T = TypeVar("T")
Reader = Callable[[object, str], Any]
"""Turns a JSON value into a typed one; its second argument is the place in the document, for the error."""


class WrongContent(ReloadlabError):
    """A JSON value that is not of the wanted type; `reason` says where and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DamagedFile(ReloadlabError):
    """A file of state that cannot be used; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.path = path
        self.reason = reason


def read_json(path: Path, *, keys_once: bool = False) -> object:
    """Return the document of a file; DamagedFile unless it is JSON, with `keys_once` if an object has a key twice."""
    try:
        return parse_json(path.read_bytes(), keys_once=keys_once)
    except WrongContent as error:
        raise DamagedFile(path, error.reason) from error


def parse_json(data: bytes, *, keys_once: bool = False) -> object:
    """Return a document; WrongContent unless it is JSON, with `keys_once` if an object has a key twice."""
    try:
        document: object = json.loads(data.decode(), object_pairs_hook=_keys_once if keys_once else None)
    except UnicodeDecodeError as error:
        raise WrongContent("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise WrongContent("empty" if not data.strip() else f"not JSON ({error})") from error
    return document


def _keys_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of these pairs; json would take the last value of a key, and drop the others without a word."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise WrongContent(f"the key {key!r} is there twice")
        found[key] = value
    return found


def read_typed(kind: type[T], path: Path) -> T:
    """Return the document of a file as a value of type `kind`; DamagedFile if it is none."""
    document = read_json(path)
    try:
        return typed(kind, document)
    except ReloadlabError as error:
        raise DamagedFile(path, str(error)) from error


def write_json(path: Path, document: object) -> None:
    """Replace the content of a file by a document, whole or not at all."""
    write_file(path, json.dumps(document).encode())


def write_file(path: Path, content: bytes) -> None:
    """Replace the content of a file, whole or not at all. Two writers at a time do not disturb each other."""
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def typed(kind: type[T], value: object, place: str = "") -> T:
    """Return a JSON value as a value of type `kind`: a dataclass, a collection or a union of such, text or a number.

    Every field of a dataclass must be there, and no other. Raises WrongContent, and what the dataclass itself raises.
    """
    converted: T = _reader(typing.cast(typing.Hashable, kind))(value, place)
    return converted


@lru_cache(maxsize=128)
def _reader(kind: Any) -> Reader:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _dataclass_reader(typing.cast(type[Any], kind))
    if origin in (typing.Union, types.UnionType):
        return _union_reader(arguments)
    if origin in (tuple, frozenset):
        return _list_reader(origin, arguments)
    if origin is dict:
        return _dict_reader(arguments[1])
    if kind in (IPv4Address, IPv6Address):
        return _address_reader(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _word_reader(kind)
    if kind is float:
        return _float
    if kind in _PLAIN:
        return _plain_reader(kind)
    raise TypeError(f"no reader for {kind}")


_PLAIN = {bool: "true or false", int: "a number", str: "text", types.NoneType: "null"}


def _plain_reader(kind: type[Any]) -> Reader:
    def read(value: object, place: str) -> object:
        # In Python, true is a number as well.
        if type(value) is not kind:
            raise WrongContent(f"{place or 'the document'} is not {_PLAIN[kind]}")
        return value

    return read


def _float(value: object, place: str) -> float:
    # Whole numbers have no end in JSON.
    if type(value) not in (int, float) or not abs(typing.cast(float, value)) <= sys.float_info.max:
        raise WrongContent(f"{place or 'the document'} is not a number")
    return float(typing.cast(float, value))


def _word_reader(kind: type[StrEnum]) -> Reader:
    def read(value: object, place: str) -> object:
        if not isinstance(value, str) or value not in list(kind):
            raise WrongContent(f"{place or 'the document'} is not one of {', '.join(kind)}")
        return kind(value)

    return read


def _dataclass_reader(kind: type[Any]) -> Reader:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}

    def read(value: object, place: str) -> object:
        found = _mapping(value, place)
        prefix = f"{place}." if place else ""
        if found.keys() != readers.keys():
            unknown, missing = found.keys() - readers.keys(), readers.keys() - found.keys()
            words = [f"unknown {prefix}{name}" for name in sorted(unknown)]
            words += [f"no {prefix}{name}" for name in sorted(missing)]
            raise WrongContent(", ".join(words))
        return kind(**{name: reader(found[name], prefix + name) for name, reader in readers.items()})

    return read


def _union_reader(kinds: tuple[Any, ...]) -> Reader:
    readers = [_reader(kind) for kind in kinds]

    def read(value: object, place: str) -> object:
        failures = []
        for reader in readers:
            try:
                return reader(value, place)
            except WrongContent as error:
                failures.append(error)
        # The failure that is deepest inside is of the kind that was meant.
        raise max(failures, key=lambda error: len(error.reason.split()[0]))

    return read


def _list_reader(origin: type[Any], arguments: tuple[Any, ...]) -> Reader:
    any_length = origin is frozenset or arguments[-1] is Ellipsis
    readers = [_reader(argument) for argument in arguments if argument is not Ellipsis]

    def read(value: object, place: str) -> object:
        if not isinstance(value, list):
            raise WrongContent(f"{place or 'the document'} is not a list")
        if any_length:
            return origin(readers[0](item, f"{place}[{number}]") for number, item in enumerate(value))
        if len(value) != len(readers):
            raise WrongContent(f"{place} has {len(value)} items, not {len(readers)}")
        return origin(
            reader(item, f"{place}[{n}]") for n, (reader, item) in enumerate(zip(readers, value, strict=True))
        )

    return read


def _dict_reader(kind: Any) -> Reader:
    reader = _reader(kind)

    def read(value: object, place: str) -> object:
        return {name: reader(item, f"{place}.{name}".lstrip(".")) for name, item in _mapping(value, place).items()}

    return read


def _address_reader(kind: type[Any]) -> Reader:
    def read(value: object, place: str) -> object:
        try:
            # A number would be taken for an address as well.
            return kind(str(value))
        except ValueError as error:
            raise WrongContent(f"{place} is not an {kind.__name__[:4]} address") from error

    return read


def _mapping(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise WrongContent(f"{place or 'the document'} is not an object")
    return value

"""The result of a benchmark: one format for all of them, with every single value. docs/bench-json.md describes it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapath.base.statefile import WrongContent, parse_json, typed
from datapath.errors import ReloadlabError
from lab.results.machine import Machine

if TYPE_CHECKING:
    from lab.system.output import OutputDirectory

FORMAT = 1
"""Increased whenever a key is added, removed or changes its meaning."""

RUN = "run"
"""The `bench` of a result that was read from run.json: values of one group are of the same scenarios in each run."""

NOISY = 0.25
"""Share of the CPUs from which on other processes distort the figures; kernel threads that clean up are in it."""

STARVED = "traffic without CPU"
"""Metric of what is done under traffic: the share of each trial in which that could notice nothing."""

LARGEST = 256 << 20
"""Bytes of a file that is read."""


class BadResult(ReloadlabError):
    """A file that holds no usable result; str() says why and what to do."""


class Better(StrEnum):
    """Which values are the better ones."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one metric, in the order in which they were measured; none and a `refusal` if it could not be.

    `block` values in a row are of one round, and no more than one independent observation: its value is their median.
    Round i of all series of a `group` is the same, and `positions` are the places of the values in its turns. `exact`
    values do not depend on chance. `side` is empty unless the result is of two sides.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    better: Better = Better.LOWER
    side: str = ""
    group: str = ""
    positions: tuple[int, ...] = ()
    exact: bool = False
    block: int = 1
    refusal: str = ""

    def __post_init__(self) -> None:
        if self.block < 1 or len(self.values) % self.block:
            raise WrongContent(f"{self.name}: {len(self.values)} values are no blocks of {self.block}")
        if self.positions and len(self.positions) != len(self.values):
            raise WrongContent(f"{self.name}: {len(self.values)} values and {len(self.positions)} positions")


@dataclass(frozen=True, slots=True)
class Load:
    """The load averages (1, 5, 15 minutes) before and after; `others` is the share of the CPUs that others had."""

    before: tuple[float, ...]
    after: tuple[float, ...] = ()
    others: float | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """How it was measured: rounds that count, those before them that do not, and the seed of a random order.

    The first `warm_up` rounds of every series of a group have values that do not count; `discarded` ones have none.
    """

    rounds: int = 0
    warm_up: int = 0
    discarded: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A whole result. `options` shape the work: where they differ, results cannot be compared.

    `subjects` are what was measured, by side: sources, macros, loader. `notes` are further facts in words.
    `complete` is false while it is measured, and stays so if that is cut short.
    """

    bench: str
    version: str
    started: str
    machine: Machine
    load: Load
    options: dict[str, str]
    subjects: dict[str, dict[str, str]]
    course: Course = field(default_factory=Course)
    seconds: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)
    series: tuple[Series, ...] = ()
    complete: bool = False
    format: int = FORMAT

    def __post_init__(self) -> None:
        check_time(self.started)
        if not self.subjects:
            raise WrongContent("no subject: it does not say what was measured")
        warm = self.course.warm_up
        if warm < 0:
            raise WrongContent(f"{warm} rounds of warm-up")
        for series in self.series:
            if series.group and 0 < len(series.values) <= warm * series.block:
                raise WrongContent(f"{series.name}: {len(series.values)} values, and {warm} rounds of warm-up")
            if series.side and series.side not in self.subjects:
                raise WrongContent(f"{series.name}: of side {series.side!r}, which is none of the subjects")

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides in their order; one of no name if the result has none."""
        return tuple(self.subjects)

    def of_side(self, side: str) -> dict[str, Series]:
        """Return the series of a side by name."""
        return {series.name: series for series in self.series if series.side == side}


def check_time(text: str) -> None:
    """Raise WrongContent unless a text is a time as datetime.fromisoformat reads it, also in UTC."""
    try:
        datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise WrongContent(f"started: {error}") from error


def to_json(result: Result) -> dict[str, Any]:
    """Return a result as JSON values, the format first."""
    values = asdict(result)
    return {"format": values.pop("format"), "complete": values.pop("complete"), **values}


def to_text(result: Result) -> str:
    """Return the document; a list of numbers stands on one line."""
    text = json.dumps(to_json(result), indent=1)
    return re.sub(r"\[\n\s*([-\d][^\[\]{}\"]*?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def write_result(output: OutputDirectory, name: str, result: Result) -> None:
    """Write a result whole, or leave what was there; OSError tells why."""
    output.write(name, to_text(result))


def read_result(path: Path) -> Result:
    """Read a result back; BadResult unless the file holds a complete one of this version."""
    return checked_result(path, read_document(path))


def read_document(path: Path) -> object:
    """Return the document of a file; BadResult if it is none, or too large to be of a measurement."""
    try:
        size = os.stat(path).st_size
        if not path.is_file():
            raise BadResult(f"{path} is not a file")
        if size > LARGEST:
            raise BadResult(f"{path} has {size >> 20} MiB; a result has at most {LARGEST >> 20}")
        return parse_json(path.read_bytes())
    except WrongContent as error:
        raise BadResult(f"{path} holds no result: {error.reason}") from error
    except OSError as error:
        raise BadResult(f"{path}: {error.strerror}") from error


def checked_result(path: Path, document: object) -> Result:
    """Return the result that the document of a file is; BadResult unless it is a complete one of this version."""
    if not isinstance(document, dict) or not {"format", "bench", "series"} <= document.keys():
        raise BadResult(f"{path} holds no result of `reloadlab bench --out`, and no run.json")
    if document["format"] != FORMAT:
        raise BadResult(f"{path} has format {document['format']!r}, this version reads {FORMAT}: measure again")
    try:
        result = typed(Result, document)
    except ReloadlabError as error:
        raise BadResult(f"{path} holds no result: {error}") from error
    if not result.complete:
        raise BadResult(f"{path} is of a measurement that was cut short: measure again")
    if not any(series.values for series in result.series):
        raise BadResult(f"{path} holds no value: measure again")
    return result


def exact(name: str, unit: str, value: float, *, side: str = "") -> Series:
    """Return the series of a value that does not depend on chance."""
    return Series(name, unit, (value,), exact=True, side=side)


def words(options: Mapping[str, object]) -> dict[str, str]:
    """Return options as text, without those that are not given."""
    return {name: _word(value) for name, value in options.items() if value not in (None, (), [], "")}


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return _words(value)
    return str(value)


def _words(values: Iterable[object]) -> str:
    return " ".join(str(value) for value in values)

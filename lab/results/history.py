"""Results over commits: a directory of plain files, one for each, whose names sort by time and hold the commit."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from statistics import median

from lab.results.compare import counted, differences
from lab.results.result import NOISY, BadResult, Better, Result, Series, read_result, to_text
from lab.results.subject import COMMIT, DIGITS, OWN_COMMIT, OWN_HASH, short
from lab.system.output import OutputDirectory

_NAME = re.compile(r"(?P<time>\d{8}T\d{6}Z)-(?P<commit>[0-9A-Za-z._-]+)-(?P<conditions>[0-9a-f]{8})\.json")
_COMMIT = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_TIME = "%Y%m%dT%H%M%SZ"
_OF_A_COMMIT = (COMMIT, "library sha256", "object sha256", OWN_COMMIT, OWN_HASH)
"""Words of a subject that change from commit to commit: that of the sources, or our own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A result of a history, and the name of its file."""

    name: str
    result: Result

    @property
    def commit(self) -> str:
        return _subject(self.result)[COMMIT]

    @property
    def identity(self) -> tuple[str, ...]:
        """What was measured: two results with the same are of the same commit, measured again."""
        return tuple(_subject(self.result).get(word, "") for word in _OF_A_COMMIT)

    @property
    def measured_by(self) -> str:
        """Which code of ours measured it: its commit or, if it has none, version and hash; empty if it does not say."""
        subject = _subject(self.result)
        digest = subject.get(OWN_HASH, "")
        return subject.get(OWN_COMMIT) or (f"{self.result.version}+{digest[:DIGITS]}" if digest else "")

    @property
    def noisy(self) -> bool:
        """Whether other processes had so much of the CPUs that its times say nothing."""
        others = self.result.load.others
        return others is not None and others > NOISY


@dataclass(frozen=True, slots=True)
class Track:
    """A metric over commits: the values of those that have one, the oldest first. A value is the median of a result.

    A commit may be there twice, measured again later. `places` are those of the values in the lineage's `commits`.
    """

    name: str
    unit: str
    better: Better
    exact: bool
    commits: tuple[str, ...]
    places: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Results that can be compared, the oldest first: the same benchmark and options on the same machine."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def commits(self) -> tuple[str, ...]:
        """The commits in their order; one that was measured several times in a row is there once.

        Where our own code changed beside that of the sources, `C by O` is commit C measured by our commit O.
        """
        ours = {entry.measured_by for entry in self.entries if entry.measured_by != entry.commit}
        return tuple(
            f"{short(first.commit)} by {short(first.measured_by)}" if len(ours) > 1 else first.commit
            for first, *_ in self._points()
        )

    @property
    def identities(self) -> tuple[tuple[str, ...], ...]:
        """What tells the commits apart, in their order."""
        return tuple(first.identity for first, *_ in self._points())

    def _points(self) -> list[list[Entry]]:
        """Return the results of each commit."""
        return [list(run) for _, run in groupby(self.entries, key=lambda entry: entry.identity)]

    @property
    def noisy(self) -> int:
        """How many results are left out of the metrics that are not exact."""
        return sum(entry.noisy for entry in self.entries)

    def tracks(self) -> list[Track]:
        """Return the metrics, in the order in which the newest result has them."""
        newest = [series.name for series in self.entries[-1].result.series]
        older = (series.name for entry in self.entries for series in entry.result.series)
        found = (self._track(name) for name in dict.fromkeys((*newest, *older)))
        return [track for track in found if track.values]

    def _track(self, name: str) -> Track:
        last = next(each for entry in reversed(self.entries) if (each := entry.result.of_side("").get(name)))
        points = []
        for place, (commit, run) in enumerate(zip(self.commits, self._points(), strict=True)):
            values = [_value(entry, last, name) for entry in run]
            if known := [value for value in values if value is not None]:
                points.append((commit, place, known[-1] if last.exact else median(known)))
        commits, places = tuple(commit for commit, _, _ in points), tuple(place for _, place, _ in points)
        middles = tuple(value for _, _, value in points)
        return Track(name, last.unit, last.better, last.exact, commits, places, middles)


def _value(entry: Entry, last: Series, name: str) -> float | None:
    """Return what a result says of a metric, None if that is nothing, or of another kind than in the last result."""
    series = entry.result.of_side("").get(name)
    if series is None or (series.unit, series.exact) != (last.unit, last.exact):
        return None
    if last.exact:
        return series.values[-1] if series.values else None
    values = [] if entry.noisy else counted(series, entry.result)
    return median(values) if values else None


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a result: the name of its file, and whether it begins a series, because of these `differences`."""

    name: str
    begins: bool
    differences: tuple[str, ...] = ()


def one_side(result: Result, side: str, *, commit: str | None = None) -> Result:
    """Return the side of a result as a result of its own, which has no sides; `commit` takes the place of its own.

    A result of no C sources, such as that of `bench topology`, is of our own commit. BadResult if there is none.
    """
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise BadResult(f"{commit!r} is no name of a commit: letters, digits, and . _ - between them")
    subject = dict(result.subjects[side]) | ({} if commit is None else {COMMIT: commit})
    if not {COMMIT, "library", "object"} & subject.keys() and OWN_COMMIT in subject:
        # No programs were measured, but our own code.
        subject[COMMIT] = subject[OWN_COMMIT]
    if not _COMMIT.fullmatch(subject.get("commit", "")):
        raise BadResult("the result names no commit: name it with --commit")
    series = tuple(replace(each, side="") for each in result.series if each.side == side)
    if not any(each.values for each in series):
        raise BadResult(f"side {side} of the result holds no value: measure again")
    return replace(result, subjects={"": subject}, series=series)


def add(directory: Path, result: Result, time: datetime | None = None) -> Added:
    """Keep a result without sides in a directory, which is made if it is missing; nothing is ever overwritten.

    `time` is its place in the series, that of the measurement if it is None; where another has it, the next second that
    is free. Raises BadResult, BadDirectory, OSError.
    """
    text = to_text(result)
    with OutputDirectory(directory) as output:
        before = entries(directory)
        for entry in before:
            if entry.result == result:
                raise BadResult(f"{directory} has this result already: {entry.name}")
        place = datetime.fromisoformat(result.started) if time is None else time
        taken = {entry.name for entry in before}
        while (name := _name(result, place)) in taken:
            place += timedelta(seconds=1)
        output.write(name, text, replace=False)
    lineages = _lineages(before)
    if not before or any(each.name == _fingerprint(result) for each in lineages):
        return Added(name, begins=not before)
    return Added(name, True, tuple(_all_differences(before[-1].result, result)))


def lineages(directory: Path) -> list[Lineage]:
    """Return the series of a directory, those first that were measured last.

    BadResult if it cannot be read, if a file in it is damaged, or if there is none.
    """
    found = entries(directory)
    if not found:
        raise BadResult(f"{directory} holds no results: put some there with `reloadlab history add`")
    return _lineages(found)


def entries(directory: Path) -> list[Entry]:
    """Return the results in a directory in order of time; files with other names are none."""
    try:
        names = sorted(name for name in os.listdir(directory) if _NAME.fullmatch(name))
    except OSError as error:
        raise BadResult(f"{directory}: {error.strerror}") from error
    found = [Entry(name, read_result(directory / name)) for name in names]
    for entry in found:
        if tuple(entry.result.subjects) != ("",) or not _COMMIT.fullmatch(_subject(entry.result).get("commit", "")):
            raise BadResult(f"{directory / entry.name} was not written by `reloadlab history add`: remove it")
    return found


def _lineages(found: Sequence[Entry]) -> list[Lineage]:
    sorted_by: dict[str, list[Entry]] = {}
    for entry in found:
        sorted_by.setdefault(_fingerprint(entry.result), []).append(entry)
    series = [Lineage(name, tuple(members)) for name, members in sorted_by.items()]
    return sorted(series, key=lambda each: each.entries[-1].name, reverse=True)


def newest(lineages: Iterable[Lineage], number: int) -> frozenset[tuple[str, ...]]:
    """Return the identities of the last commits of all series together, in the order in which they were first measured.

    A series to which nothing is added any more has none of them after a while.
    """
    entries = sorted((entry for lineage in lineages for entry in lineage.entries), key=lambda entry: entry.name)
    return frozenset(list(dict.fromkeys(entry.identity for entry in entries))[-number:])


def conditions(result: Result) -> Mapping[str, object]:
    """Return what the results of a series have in common."""
    machine = {name: getattr(result.machine, name) for name in result.machine.__slots__ if name != "frequency_mhz"}
    subject = {name: word for name, word in _subject(result).items() if name not in _OF_A_COMMIT}
    return {"bench": result.bench, "options": result.options, "machine": machine, "subject": subject}


def _all_differences(old: Result, new: Result) -> Iterable[str]:
    yield from differences(old, new)
    mine, theirs = _subject(old), _subject(new)
    for name in sorted((mine.keys() | theirs.keys()).difference(_OF_A_COMMIT)):
        if mine.get(name) != theirs.get(name):
            yield f"{name}: {mine.get(name, 'not given')}, {theirs.get(name, 'not given')}"


def _fingerprint(result: Result) -> str:
    text = json.dumps(conditions(result), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _subject(result: Result) -> dict[str, str]:
    return result.subjects[""]


def _name(result: Result, time: datetime) -> str:
    return f"{time.astimezone(UTC):{_TIME}}-{short(_subject(result)['commit'])}-{_fingerprint(result)}.json"

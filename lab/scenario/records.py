"""What is known of every scenario of a session, in a directory: one JSON file each, from its collection to its end.

A scenario has a record as soon as it is collected. Whatever happens to the process that runs it, the record is there
and says how far it came.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

NOT_RUN, RUNNING, PASSED, SKIPPED, FAILED, ERROR = "not run", "running", "passed", "skipped", "failed", "error"
"""Outcomes, the better ones first: of several phases the worst counts. RUNNING is none: the end is not known yet."""

END = "end"
"""A file beside the records, written when the session ends by itself: it holds one of the following."""
FINISHED, INTERRUPTED = "finished", "interrupted"

NO_STEPS: dict[str, Any] = {"seen": 0, "unseen": 0, "seen_kinds": [], "unseen_kinds": []}
"""Of a test without reloads."""

WHERE = "reloadlab_where"
"""An attribute of pytest's reports: the fields of a record that say where it was made; missing for this machine."""

_ORDER = {outcome: rank for rank, outcome in enumerate((NOT_RUN, RUNNING, PASSED, SKIPPED, FAILED, ERROR))}
_READABLE = 100


@dataclass(frozen=True, slots=True)
class Record:
    """A scenario by pytest's name of it.

    `message` says what failed, or why it was skipped or not run. `violations` are the invariants that did not hold,
    `reloads` those of Outcome.to_json() with their node, `failed_reloads` those that failed, `sent` and `lost` the
    packets of its traffic, all phases together, and `denied` those of them that its policy had to stop. `steps` says
    how many steps of reloads had packets under way, `traffic` has an object for each phase; `starved_ns` is for how
    long the traffic had no CPU, `starved_part` in which part of the time of the reloads, `gaps` what could not be
    watched, `findings` the violations that have times, `gates` where and when gates stopped reloads, `nodes` the nodes
    as they were at its end (`number`, `shape` and `names`, lab.node.shape). `machine` is the one of several that ran
    it, empty for this one, and `kernel` the release of its kernel; empty if nothing ran it. See
    docs/run-json.md.
    """

    name: str
    outcome: str = NOT_RUN
    seconds: float = 0.0
    message: str = ""
    violations: tuple[str, ...] = ()
    reloads: tuple[dict[str, Any], ...] = ()
    sent: int = 0
    lost: int = 0
    denied: int = 0
    starved_ns: int = 0
    starved_part: float = 0.0
    steps: dict[str, Any] = field(default_factory=lambda: dict(NO_STEPS))
    traffic: tuple[dict[str, Any], ...] = ()
    gaps: tuple[str, ...] = ()
    findings: tuple[dict[str, Any], ...] = ()
    failed_reloads: tuple[dict[str, Any], ...] = ()
    gates: tuple[dict[str, Any], ...] = ()
    nodes: tuple[dict[str, Any], ...] = ()
    machine: str = ""
    kernel: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing speaks against a green run."""
        return self.outcome in (PASSED, SKIPPED)

    def worsened(self, outcome: str, message: str = "") -> Self:
        """Return the record after another phase: the worse outcome, and both messages."""
        worse = max(self.outcome, outcome, key=_ORDER.__getitem__)
        return replace(self, outcome=worse, message="\n\n".join(filter(None, (self.message, message))))

    @property
    def bad(self) -> bool:
        """Whether something went wrong: it failed, or came to no verdict."""
        return self.outcome in (FAILED, ERROR)

    def settled(self, *, ended: bool) -> Self:
        """Return the record of a session that is over: `ended` by itself, or because its process died."""
        if self.outcome != RUNNING:
            return self
        if ended:
            return replace(self, outcome=NOT_RUN, message="stopped while it ran")
        return replace(self, outcome=ERROR, message=f"pytest died while it ran {self.name}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        names = ("violations", "reloads", "traffic", "gaps", "findings", "failed_reloads", "gates", "nodes")
        lists = {name: tuple(data[name]) for name in names}
        return cls(**{**data, **lists})


def write(directory: Path, record: Record) -> None:
    """Write a record, whole or not at all; one of the same name is replaced."""
    path = directory / file_name(record.name)
    upcoming = path.with_suffix(".new")
    upcoming.write_text(json.dumps(record.to_json()))
    upcoming.replace(path)


def read(paths: Iterable[Path]) -> list[Record]:
    """Return the records in these files, in order of name."""
    found = [Record.from_json(json.loads(path.read_text())) for path in paths]
    return sorted(found, key=lambda record: record.name)


def file_name(name: str) -> str:
    """Return a name for a record's file that no other scenario's has: one can read it, and a digest tells it apart."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:20]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-_READABLE:]}-{digest}.json"


def short_name(nodeid: str) -> str:
    """Return a test's name without directory, suffix and the words every test has: `rollback: second attach fails`."""
    path, _, name = nodeid.partition("::")
    suite = Path(path).stem.removeprefix("test_").replace("_", " ")
    # A module that cannot be imported has no tests.
    return f"{suite}: {name.removeprefix('test_').replace('_', ' ')}" if name else suite

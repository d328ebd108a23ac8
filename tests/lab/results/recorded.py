"""Runs of `bench ab` that were measured, as far as a comparison depends on them: recorded.json.gz.

`null` are 127 runs of `make null-runs` (`--precision 3% --max-time 20`), `planted` 20 of
`tools/ab-runs 50 own sleep=0.6`: all that came to their end, of 2026-12-01, on two virtual CPUs with Linux 6.18. A run
is an object with a list for each metric: of every round after the warm-up the logarithm of B's value divided by A's, in
units of 0.00001. Coarser ones would have ties, which were none.

    python -m tests.lab.results.recorded null=DIRECTORY planted=DIRECTORY    # records those of out/ab-runs instead
"""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from lab.bench.sides import SIDES
from lab.results.compare import counted
from lab.results.result import Course, Result, Series, read_result
from tests.lab.results.samples import result

_FILE = Path(__file__).with_name("recorded.json.gz")
_UNIT = 1e-5


def recorded(kind: str) -> Iterator[Result]:
    """Yield the runs of a kind, `null` or `planted`, as results in which every value of A is 1 second."""
    for run in json.loads(gzip.decompress(_FILE.read_bytes()))[kind]:
        rounds = max(map(len, run.values()))
        values = {name: (1.0,) * len(ratios) for name, ratios in run.items()}
        changed = {name: tuple(math.exp(each * _UNIT) for each in ratios) for name, ratios in run.items()}
        series = [
            Series(name, "s", each, side=side, group="rounds")
            for side, of_side in zip(SIDES, (values, changed), strict=True)
            for name, each in of_side.items()
        ]
        yield result(*series, sides=SIDES, bench="ab", course=Course(rounds))


def _ratios(run: Result) -> dict[str, list[int]]:
    a, b = (run.of_side(side) for side in SIDES)
    found = {}
    for name in a.keys() & b.keys():
        pairs = list(zip(counted(a[name], run), counted(b[name], run), strict=True))
        if not a[name].exact and min(min(pair) for pair in pairs) > 0:
            found[name] = [round(math.log(after / before) / _UNIT) for before, after in pairs]
    return {name: found[name] for name in a if name in found}


def _complete(directory: str) -> list[Path]:
    paths = sorted(Path(directory).glob("*.json"), key=lambda path: int(path.stem))
    return [path for path in paths if json.loads(path.read_text())["complete"]]


if __name__ == "__main__":
    runs = {
        kind: [_ratios(read_result(path)) for path in _complete(directory)]
        for kind, _, directory in (word.partition("=") for word in sys.argv[1:])
    }
    _FILE.write_bytes(gzip.compress(json.dumps(runs, separators=(",", ":")).encode(), mtime=0))

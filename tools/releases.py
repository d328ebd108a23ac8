"""releases.py FILE [SUITE ...]: run scenarios on every release of Cilium that FILE names, and print a table of them.

FILE is TOML with a table a release, of options of `reloadlab run`:

    ["1.16.5 tcx"]
    loader = "env PATH=/usr/lib/llvm-16/bin:/usr/bin:/bin /root/loaders/cilium-116"
    library = "/root/cilium-1.16.5/bpf"
    attach = "tcx"

Each run is kept in out/releases/RELEASE/run.json. Without SUITE nothing is run: the table is of what is there. Exit
code 1 if something did not come to its end; what fails in a scenario is a result.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "releases"
WORDS = {"passed": "passed", "failed": "failed", "error": "without a verdict", "skipped": "not asked"}


def run(name: str, options: Mapping[str, str], suites: list[str]) -> None:
    """Run suites on one release."""
    argv = [ROOT / ".venv/bin/reloadlab", "run", "--rounds", "0", "--workers", "1", "--out", directory(name), *suites]
    for option, value in options.items():
        argv += [f"--{option}", value]
    print(f"{name}: {' '.join(map(str, argv[1:]))}", file=sys.stderr)
    directory(name).mkdir(parents=True, exist_ok=True)
    subprocess.run(argv, check=False, stdout=sys.stderr)


def directory(name: str) -> Path:
    return OUT / name.replace(" ", "-")


def results(name: str) -> dict[str, Counter[str]] | None:
    """Return the outcomes of a release by suite; None if its run did not come to its end."""
    try:
        document: dict[str, Any] = json.loads((directory(name) / "run.json").read_text())
    except FileNotFoundError:
        return None
    if not document["complete"]:
        return None
    found: dict[str, Counter[str]] = {}
    for scenario in document["scenarios"]:
        suite = Path(scenario["name"].partition("::")[0]).stem.removeprefix("test_")
        found.setdefault(suite, Counter())[scenario["outcome"]] += 1
    return found


def cell(outcomes: Counter[str] | None) -> str:
    if outcomes is None:
        return "-"
    return ", ".join(f"{outcomes[key]} {word}" for key, word in WORDS.items() if outcomes[key]) or "-"


def main(file: str, *suites: str) -> int:
    releases = tomllib.loads(Path(file).read_text())
    if suites:
        for name, options in releases.items():
            run(name, options, list(suites))
    tables = {name: results(name) for name in releases}
    names = sorted({suite for table in tables.values() for suite in table or ()})
    print(f"| release | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for release, table in tables.items():
        print(f"| {release} | {' | '.join(cell((table or {}).get(suite)) for suite in names)} |")
    return int(None in tables.values())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))

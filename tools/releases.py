"""releases.py FILE [SUITE ...]: run scenarios on every release of Cilium that FILE names, and print a table of them.

FILE is what RELOADLAB_RELEASES names as well: docs/releases.md says how it is written. Each run is kept in
out/releases/RELEASE/run.json. Without SUITE nothing is run: the table is of what is there. Exit code 1 if something did
not come to its end; what fails in a scenario is a result.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import script

from reloadlab import Release, read_releases

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "releases"


def run(release: Release, suites: Sequence[str]) -> bool:
    """Run suites on a release, and tell whether the run came to its end. No result of an earlier one is left."""
    result = result_of(release)
    result.unlink(missing_ok=True)
    options = ["--rounds", "0", "--workers", "1", "--out", str(result.parent), *release.argv, *suites]
    print(f"{release.name}: reloadlab run {' '.join(options)}", file=sys.stderr)
    with subprocess.Popen([ROOT / ".venv/bin/reloadlab", "run", *options], stdout=sys.stderr) as process:
        code = end_of(process)
    if code == script.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (0, 1):
        print(f"{release.name}: ended with exit code {code}", file=sys.stderr)
    return code in (0, 1)


def end_of(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a run. Ctrl-C is for the run as well, which takes its nodes down first."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def result_of(release: Release) -> Path:
    return OUT / release.name / "run.json"


def results(release: Release) -> dict[str, Counter[str]] | None:
    """Return how many scenarios of each suite had which outcome; None if the run did not come to its end."""
    # Importable once something of reloadlab is.
    from lab.report.documents import read_document

    path = result_of(release)
    if not path.exists():
        return None
    run = read_document(path)
    if run.kind != "run" or not run.content["complete"]:
        return None
    found: dict[str, Counter[str]] = {}
    for scenario in run.content["scenarios"]:
        suite = Path(scenario["name"].partition("::")[0]).stem.removeprefix("test_")
        found.setdefault(suite, Counter())[scenario["outcome"]] += 1
    return found


def cell(outcomes: Counter[str] | None) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()) if outcomes else "-"


def main(file: str, *suites: str) -> int:
    releases = read_releases(Path(file))
    ended = [release for release in releases if not suites or run(release, suites)]
    tables = {release.name: results(release) if release in ended else None for release in releases}
    names = sorted({suite for table in tables.values() for suite in table or ()})
    print(f"| release | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for name, table in tables.items():
        print(f"| {name} | {' | '.join(cell((table or {}).get(suite)) for suite in names)} |")
    return int(None in tables.values())


if __name__ == "__main__":
    script.run(main, __doc__)

"""A run.json with little in it, as the scripts of tools/ read it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from lab.results.run import RUN_FORMAT
from lab.scenario.records import Record

_REST: dict[str, Any] = {
    **{name: [] for name in ("reloads", "failed_reloads")},
    **{"format": RUN_FORMAT, "complete": True, "error": None, "version": "1", "started": "", "subject": {}},
    **{"machine": {"kernel": "6.1", "cpus": 2}, "seconds": 1.0, "parallel": None},
}


def run_document(scenarios: Iterable[Record]) -> str:
    """Return a run that came to its end, with these scenarios."""
    return json.dumps({**_REST, "scenarios": [asdict(each) for each in scenarios]})

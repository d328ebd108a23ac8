"""Runs on a machine before its workers: prints as one JSON object what it is and what it lacks."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from lab.doctor import doctor
from lab.machines.identity import identity
from lab.results.machine import this_machine
from lab.system.limits import raise_locked_memory
from lab.system.pace import calibrate


def examination() -> dict[str, Any]:
    """Return the identity, the facts, the slowness and the doctor's findings of this machine as JSON values."""
    raise_locked_memory()
    return {
        "identity": identity().to_json(),
        "cpus": len(os.sched_getaffinity(0)),
        "machine": asdict(this_machine()),
        "slowness": calibrate(),
        "requirements": [
            {"name": each.name, "state": each.state.value, "line": str(each)} for each in doctor.examine()
        ],
    }


if __name__ == "__main__":
    json.dump(examination(), sys.stdout)

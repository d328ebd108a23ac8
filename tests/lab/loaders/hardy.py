"""A loader that outlives what it has started: our pipeline, whose helper may be killed."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datapath.reload.step import Plan
from lab.loaders import pipeline

FILE = "helped"
"""What the helper removes, beside the object file of each pod."""


class Hardy(pipeline.Pipeline):
    def plan(self, request: Mapping[str, Any]) -> Plan:
        path = Path(request["object"]).with_name(FILE)
        path.touch()
        subprocess.run(["unlink", path], check=False)
        path.unlink(missing_ok=True)
        return super().plan(request)


if __name__ == "__main__":
    pipeline.main(Hardy)

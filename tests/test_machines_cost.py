"""docs/machines.md: its table of costs is what its formula makes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "machines.md").read_text()
(FORMULA,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
BOOT, EMULATED = 50, 14


def test_the_table_of_costs_is_what_the_formula_makes() -> None:
    known: dict[str, Any] = {}
    exec(FORMULA, known)
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE
    )
    assert len(rows) == 8
    wrong = []
    for *counts, how, minutes, hours in rows:
        scenarios, kernels, machines, cpus = map(int, counts)
        options = {"kernels": kernels, "slowness": EMULATED if how == "emulated" else 1, "boot": BOOT}
        made = f"{known['seconds'](scenarios, machines, cpus, **options) / 60:.1f}"
        cost = f"{known['core_hours'](scenarios, machines, cpus, **options):.1f}"
        if (made, cost) != (minutes, hours):
            wrong.append(f"{counts} {how}: {made} {cost}, not {minutes} {hours}")
    assert wrong == []
    best = math.sqrt(229 * known["CORE_SECONDS"] / known["START"])
    assert f"{best:.0f} for those 229" in TEXT

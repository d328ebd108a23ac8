"""How figures look in tables: times in the unit that suits them, changes with a sign."""

from __future__ import annotations

import math
from collections.abc import Iterable

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BARS = "▁▂▃▄▅▆▇█"


def scale(unit: str, values: Iterable[float]) -> tuple[float, str]:
    """Return the factor and the name of the unit in which values that stand side by side are shown."""
    sizes = [abs(value) for value in values if value]
    if unit != "s" or not sizes:
        return 1.0, unit
    return next((each for each in _TIMES if min(sizes) >= each[0]), _TIMES[-1])


def figure(value: float) -> str:
    """Return four digits of a number, and all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def percent(change: float) -> str:
    """Return a change such as +3.1%; one from 0 has no percentage."""
    return f"{change:+.1%}" if math.isfinite(change) else "from 0"


def probability(p: float) -> str:
    """Return a p value; of a very small one only that it is."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def finite(value: float | None) -> float | None:
    """Return a number that JSON has; None for what is none."""
    return value if value is not None and math.isfinite(value) else None


def sparkline(values: Iterable[float], most: int = 40) -> str:
    """Return a bar for each value, of the last `most`, between the lowest and the highest of them."""
    shown = list(values)[-most:]
    low, high = min(shown), max(shown)
    if low == high:
        return _BARS[len(_BARS) // 2] * len(shown)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in shown)

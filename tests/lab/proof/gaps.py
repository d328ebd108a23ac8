"""What a proof could not watch, in tests of machines that are busy."""

from __future__ import annotations

from collections.abc import Sequence


def gaps_of(gaps: Sequence[str]) -> list[str]:
    """Return the gaps but for traffic that got no CPU between the calls: at each call it was answered all the same."""
    return [gap for gap in gaps if not gap.startswith("no verdict: ")]

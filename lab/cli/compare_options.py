"""The options of comparisons, as several commands declare them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.targets import BadOption

if TYPE_CHECKING:
    from lab.results.result import Result

NOT_COMPARABLE = 3
"""Exit code of what compares: nothing can be said, or it failed. A regression has 1."""

THRESHOLD = 0.02
"""The smallest change that counts: 2 %."""


def add_threshold(parser: argparse.ArgumentParser, *, default: float | None = THRESHOLD) -> None:
    """Declare from which change on a difference counts."""
    parser.add_argument(
        "--threshold",
        type=percentage,
        default=default,
        metavar="PERCENT",
        help="the smallest change that counts (2%%)",
    )


def percentage(text: str) -> float:
    """Return 0.01 of 1% or 1; it is above 0 and at most 100 %."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage such as 1%")
    return share


def add_side(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declare which side of a result of two is meant."""
    parser.add_argument("--side", metavar="A|B", help=f"the side of a result of `bench ab` {purpose}")


def chosen_side(result: Result, side: str | None, path: Path) -> str:
    """Return the side of a result that is meant; BadOption if it is not there, or is not said and there are two."""
    if side in result.sides or (side is None and len(result.sides) == 1):
        return result.sides[0] if side is None else side
    known = f"the sides {', '.join(result.sides)}: name one" if result.sides[0] else "no sides: leave it out"
    raise BadOption(f"--side: {path} has {known}")

"""The options of comparisons, as several commands declare them."""

from __future__ import annotations

import argparse

THRESHOLD = 0.02
"""The smallest change that counts: 2 %."""


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Declare from which change on a difference counts."""
    parser.add_argument(
        "--threshold",
        type=percentage,
        default=THRESHOLD,
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

"""shape.py: what a document must have, and the words for what it has not."""

from __future__ import annotations

import json
import re

import pytest

from datapath.base.statefile import WrongContent
from lab.report.shape import Shape, check

SHAPE: Shape = {"name": str, "share": float, "rows": [{"at": int}], "end": (type(None), {"at": int})}
GOOD = {"name": "a", "share": 1, "rows": [{"at": 3, "more": []}], "end": None, "unknown": 4}


def test_unknown_keys_and_whole_numbers_fit() -> None:
    check(GOOD, SHAPE)
    check({**GOOD, "share": 0.5, "end": {"at": 1}}, SHAPE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": 3}, "name is not text"),
        ({"share": True}, "share is not a number"),
        ({"share": json.loads("NaN")}, "share is not a number"),
        ({"share": json.loads("1e999")}, "share is not a number"),
        ({"share": json.loads("9" * 400)}, "share is not a number"),
        ({"rows": {}}, "rows is not a list"),
        ({"rows": [{"at": 1}, {"at": 1.5}]}, "rows[1].at is not a whole number"),
        ({"rows": [{"at": 10**30}]}, "rows[0].at is not a whole number"),
        ({"rows": [3]}, "rows[0] is not an object"),
        ({"end": {"at": "x"}}, "end.at is not a whole number"),
        ({"end": {}}, "no end.at"),
    ],
    ids=str,
)
def test_the_place_that_is_wrong_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(WrongContent, match=f"^{re.escape(said)}$"):
        check({**GOOD, **changes}, SHAPE)

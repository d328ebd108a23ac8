from __future__ import annotations

import pytest

from lab.agent.options import BadMacro, parse_macro


@pytest.mark.parametrize(
    ("text", "macro"),
    [
        ("X", ("X", "1")),
        ("X=", ("X", "")),
        ("X=0", ("X", "0")),
        ("X=a=b", ("X", "a=b")),
        ("F(a,b)=a == b", ("F(a,b)", "a == b")),
    ],
)
def test_macros_are_a_compilers(text: str, macro: tuple[str, str]) -> None:
    assert parse_macro(text) == macro


@pytest.mark.parametrize("text", ["", "=1", "1X", "A B", "é", "F(a", "F(a-b)=1"])
def test_name_that_no_compiler_takes(text: str) -> None:
    with pytest.raises(BadMacro, match="is not the name of a macro"):
        parse_macro(text)

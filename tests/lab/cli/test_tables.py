from __future__ import annotations

import pytest

from lab.cli.tables import make_table, print_table, table_of


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_numbers_stand_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [
        {"a_b": "x", "n": 5, "ok": True, "l": []},
        {"a_b": None, "n": 10, "ok": False, "l": ["p", "q"]},
    ]
    print_table(table_of(rows))
    assert printed(capsys) == ["a b   n  ok   l", "x     5  yes  -", "-    10  no   p q"]


def test_rows_may_have_other_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Connections of nodes with different releases have: some count both directions together."""
    print_table(table_of([{"who": "a", "sent": 5}, {"who": "b", "both": 12}]))
    assert printed(capsys) == ["who  sent  both", "a       5     -", "b       -    12"]


def test_a_row_is_one_line_however_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(table_of([{"first": "x" * 300, "last": "end"}]))
    head, line = printed(capsys)
    assert head.split() == ["first", "last"]
    assert line == f"{'x' * 300}  end"


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(table_of([{"what": "[red]x[/]"}]))
    assert printed(capsys)[1] == "[red]x[/]"


def test_title_stands_above(capsys: pytest.CaptureFixture[str]) -> None:
    title = "demo/pod-1: [generation] 6, and more words than there are columns"
    table = make_table("step", "ms", figures=("ms",), title=title)
    table.add_row("compile", "12.5")
    print_table(table)
    assert printed(capsys) == [title, "step       ms", "compile  12.5"]

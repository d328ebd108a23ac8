from __future__ import annotations

import pytest

from lab.cli.survey_view import markdown, print_survey
from lab.vm.survey import Check, Survey

OLD = Survey(
    "5.10",
    "5.10.0-46-amd64",
    (Check("doctor", True), Check("up: tunnel", False, "no tunnel")),
    {"root": "ok", "tcx": "off"},
    {"bpf_lxc.c": {"cil_from_container": 1300, "tail": None}},
)
NEW = Survey("7.3", "7.3.4", (Check("doctor", True),), {"root": "ok", "tcx": "ok"}, {"bpf_lxc.c": {"tail": 7}})
DEAD = Survey("6.1", "6.1.0", failure="it hung")


def test_tables_in_markdown_have_a_column_for_each_kernel() -> None:
    assert markdown([OLD, NEW, DEAD]).splitlines() == [
        "| | 5.10 (5.10.0-46-amd64) | 7.3 (7.3.4) | 6.1 (6.1.0) |",
        "|---|---|---|---|",
        "| doctor | ok | ok | - |",
        "| up: tunnel | FAIL | - | - |",
        "| doctor: tcx | off | ok | - |",
        "",
        "| verified instructions | 5.10 (5.10.0-46-amd64) | 7.3 (7.3.4) | 6.1 (6.1.0) |",
        "|---|---|---|---|",
        "| bpf_lxc.c: cil_from_container | 1,300 | - | - |",
        "| bpf_lxc.c: tail | refused | 7 | - |",
        "",
        "- 5.10: up: tunnel: no tunnel",
        "- 6.1: it hung",
    ]


def test_the_terminal_gets_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_survey([OLD, NEW])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["doctor:", "tcx", "off", "ok"] in rows
    assert ["bpf_lxc.c:", "tail", "refused", "7"] in rows
    assert rows[-1] == ["5.10:", "up:", "tunnel:", "no", "tunnel"]

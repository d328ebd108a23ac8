"""docs/suite.md: what it shows runs, and it lists every name that a suite may import."""

from __future__ import annotations

import ast
import re
import textwrap
import uuid
from pathlib import Path

import pytest

import reloadlab
from tests.nested import PYTEST

pytest_plugins = ["pytester"]

TEXT = (Path(__file__).resolve().parents[2] / "docs/suite.md").read_text()


def shown_code() -> list[str]:
    """Return the indented blocks that are Python."""
    found = []
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", TEXT, re.MULTILINE):
        code = textwrap.dedent(block).strip()
        try:
            ast.parse(code)
        except SyntaxError:
            continue
        if code:
            found.append(code)
    return found


def test_every_public_name_is_listed() -> None:
    listed = re.findall(r"`(\w+)`", TEXT.partition("## The names")[2])
    assert sorted(listed) == sorted({"reloadlab", *reloadlab.__all__})


@pytest.mark.privileged
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shown_suite_passes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELOADLAB_RUN", f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    configuration, *suite = shown_code()
    pytester.makeconftest(configuration)
    pytester.makepyfile(test_mine="\n\n".join(suite))
    number = sum(code.count("def test_") for code in suite)
    assert number == 9
    result = pytester.runpytest_subprocess(*PYTEST, "--strict-markers", timeout=180)
    result.assert_outcomes(passed=number)

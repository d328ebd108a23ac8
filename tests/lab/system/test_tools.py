from __future__ import annotations

import pytest

from datapath.errors import ToolError
from lab.system import tools
from lab.system.pace import SLOWNESS_VARIABLE


def test_a_tool_has_longer_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "1")
    with pytest.raises(ToolError, match=r"killed after 0\.2 s without a result"):
        tools.run(["sleep", "1"], timeout=0.2)
    monkeypatch.setenv(SLOWNESS_VARIABLE, "50")
    assert tools.run(["sleep", "1"], timeout=0.2) == ""

from __future__ import annotations

from pathlib import Path

import pytest

from datapath.errors import ToolError, ToolMissing
from lab.system import tools
from lab.system.pace import SLOWNESS_VARIABLE


def test_a_tool_has_longer_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "1")
    with pytest.raises(ToolError, match=r"killed after 0\.2 s without a result"):
        tools.run(["sleep", "1"], timeout=0.2)
    monkeypatch.setenv(SLOWNESS_VARIABLE, "50")
    assert tools.run(["sleep", "1"], timeout=0.2) == ""


@pytest.mark.parametrize(
    ("tool", "package"),
    [("ssh", "openssh-client"), ("qemu-system-x86_64", "qemu-system-x86"), ("vagrant", "vagrant")],
)
def test_a_tool_that_is_missing_is_named_with_its_package(
    tool: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package `ssh` would bring a server as well."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=rf"^{tool} not found: apt-get install {package}$"):
        tools.find(tool)

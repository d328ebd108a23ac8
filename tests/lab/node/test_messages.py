from __future__ import annotations

import subprocess
import sys

import pytest

from datapath.kernel.messages import MessageClass, ifaddrmsg, ifinfmsg, rtmsg
from tests.lab.labs import ROOT


@pytest.mark.parametrize("kind", [ifaddrmsg, ifinfmsg, rtmsg], ids=lambda kind: kind.name)
def test_a_message_is_one_of_pyroute2(kind: MessageClass) -> None:
    message = kind()
    assert (type(message).__name__, type(message).__module__) == (kind.name, f"pyroute2.netlink.rtnl.{kind.name}")


def test_pyroute2_is_imported_with_the_first_message() -> None:
    code = "import sys, lab.node.live as live; assert 'pyroute2' not in sys.modules; live.links.delete_link(1)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

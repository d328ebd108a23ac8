from __future__ import annotations

import subprocess
import sys

import pytest

from datapath.kernel.netlink import NLM_F_DUMP, NLM_F_REQUEST, RTM_NEWLINK
from lab.node.messages import MessageClass, encode, ifaddrmsg, ifinfmsg, rtmsg
from tests.lab.labs import ROOT


@pytest.mark.parametrize("kind", [ifaddrmsg, ifinfmsg, rtmsg], ids=lambda kind: kind.name)
def test_a_message_is_one_of_pyroute2(kind: MessageClass) -> None:
    message = kind()
    assert (type(message).__name__, type(message).__module__) == (kind.name, f"pyroute2.netlink.rtnl.{kind.name}")


def test_pyroute2_is_imported_with_the_first_message() -> None:
    """Without what takes long and is of no use here; who asks for more of it has all of it."""
    code = (
        "import sys, lab.node.live as live; assert 'pyroute2' not in sys.modules\n"
        "live.links.delete_link(1); assert 'asyncio' not in sys.modules\n"
        "from pyroute2 import IPRoute; import pyroute2; assert 'asyncio' in sys.modules\n"
        "assert IPRoute and pyroute2.netlink.rtnl.ifinfmsg and pyroute2.__version__ and not hasattr(pyroute2, 'none')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_is_encoded_is_what_pyroute2_reads() -> None:
    """Nested attributes as well; every message is a request."""
    attributes = [("IFLA_IFNAME", "x0"), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]})]
    data = encode(ifinfmsg, RTM_NEWLINK, NLM_F_DUMP, {"index": 7}, attributes)
    found = ifinfmsg(data)
    found.decode()
    assert (found["index"], found.get_attr("IFLA_IFNAME")) == (7, "x0")
    assert found.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND") == "veth"
    assert (found["header"]["type"], found["header"]["flags"]) == (RTM_NEWLINK, NLM_F_REQUEST | NLM_F_DUMP)

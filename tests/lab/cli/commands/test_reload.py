from __future__ import annotations

import json

import pytest

from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.lab.labs import removed, unique_name

pytestmark = pytest.mark.privileged


def test_port_and_mtu_change_while_reloading(capsys: pytest.CaptureFixture[str]) -> None:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1, tunnel=True))
        for option, value in (("--tunnel-port", "8473"), ("--mtu", "1400")):
            assert main(["reload", name, option, value, "--json"]) == 0
            reloaded = [item["subject"] for item in json.loads(capsys.readouterr().out)["reloads"]]
            assert sorted(reloaded) == ["health", "host", "overlay", "pod-1"]
        spec = Node.open(name).spec
        assert (spec.tunnel_port, spec.mtu) == (8473, 1400)


def test_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=0))
        assert main(["reload", name, "--tunnel-port", "8473"]) == 1
        assert capsys.readouterr().err == f"reloadlab: {name} has no tunnel\n"
        assert main(["reload", name, "--mtu", "60"]) == 1
        assert "the MTU is 1280 to 65520 bytes, not 60" in capsys.readouterr().err
        for option, value in (("--mtu", "1400"), ("--tunnel-port", "8473")):
            assert main(["reload", f"{name}/host", option, value]) == 1
            assert f"{option} switches the whole node" in capsys.readouterr().err
        assert Node.open(name).spec.mtu == 1500

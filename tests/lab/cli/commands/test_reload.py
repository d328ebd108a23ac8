from __future__ import annotations

import json

import pytest

from datapath.base.mapnames import CIDR_MAPS
from datapath.kernel import bpf
from datapath.kernel.map import open_pin
from datapath.kernel.xdp import takes_frags
from lab.agent.cluster import build, cluster_specs
from lab.agent.prefilter import stored
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.snapshot import take
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
        assert main(["reload", name, "--tunnel-port", "8473"]) == 2
        assert capsys.readouterr().err == f"reloadlab: {name} has no tunnel\n"
        assert main(["reload", name, "--mtu", "60"]) == 2
        assert "the MTU is 1280 to 65520 bytes, not 60" in capsys.readouterr().err
        for option, value in (("--mtu", "1400"), ("--tunnel-port", "8473")):
            assert main(["reload", f"{name}/host", option, value]) == 2
            assert f"{option} switches the whole node" in capsys.readouterr().err
        assert Node.open(name).spec.mtu == 1500
        assert main(["reload", name, "--xdp", "native"]) == 2
        assert capsys.readouterr().err == (
            "reloadlab: XDP programs are for native devices, and the node has none: build it with --devices eth0\n"
        )


def test_what_one_lab_went_through_is_told_if_the_next_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with removed(unique_name()) as first, removed(unique_name()) as second:
        Node.up(NodeSpec(first, pods=0, tunnel=True))
        Node.up(NodeSpec(second, pods=0))
        assert main(["reload", first, second, "--tunnel-port", "8473", "--json"]) == 2
        told = capsys.readouterr()
        assert sorted(item["subject"] for item in json.loads(told.out)["reloads"]) == ["health", "host", "overlay"]
        assert told.err == f"reloadlab: {second} has no tunnel\n"


def test_xdp_is_switched_on_in_another_mode_and_off(capsys: pytest.CaptureFixture[str]) -> None:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=0, devices=("eth0",)))
        for mode, subjects in (("generic", ["health", "host", "xdp"]), ("off", ["health", "host", "xdp"])):
            assert main(["reload", name, "--xdp", mode, "--json"]) == 0
            reloaded = [item["subject"] for item in json.loads(capsys.readouterr().out)["reloads"]]
            assert sorted(reloaded) == subjects
            assert main(["show", name]) == 0
            assert ("xdp cil_xdp_entry (generic)" in capsys.readouterr().out) == (mode == "generic")
        assert main(["reload", name, "--xdp", "native"]) == 0
        capsys.readouterr()
        # Before Linux 5.18 no program takes frames in several pieces.
        takes = takes_frags()
        assert main(["reload", name, "--mtu", "9000"]) == (0 if takes else 2)
        assert capsys.readouterr().err == (
            ""
            if takes
            else f"reloadlab: native XDP takes no MTU of 9000 bytes: reload {name} with --xdp generic or off first\n"
        )
        assert main(["reload", name, "--xdp", "off"]) == 0
        assert Node.open(name).spec.xdp is None
        assert main(["reload", f"{name}/xdp"]) == 1
        assert "has no endpoint xdp" in capsys.readouterr().err


def test_what_has_programs_ask_for_denied_prefixes_is_possible_on_that_node(capsys: pytest.CaptureFixture[str]) -> None:
    for devices, words in (
        (
            (),
            "no program asks for it, nor has the node a native device: build it with up --devices eth0 --xdp native\n",
        ),
        (("eth0",), "no program asks for it: reloadlab reload {name} --xdp native\n"),
    ):
        with removed(unique_name()) as name:
            Node.up(NodeSpec(name, pods=0, devices=devices))
            assert main(["prefilter", name]) == 0
            assert capsys.readouterr().out == f"{name}: nothing is denied\n" + words.format(name=name)


def test_prefixes_are_denied_and_allowed_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Before there is a program as well: the maps are filled when they are made."""
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=0, devices=("eth0",)))
        assert main(["prefilter", name, "--deny", "192.0.2.0/24", "--deny", "2001:db8::1"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{name}: 192.0.2.0/24, 2001:db8::1/128\nno program asks for it: ")
        assert main(["reload", name, "--xdp", "native"]) == 0
        assert denied(name) == {"cilium_cidr_v4_dyn": 1, "cilium_cidr_v6_fix": 1}
        assert main(["prefilter", name, "--allow", "192.0.2.0/24", "--deny", "192.0.2.7"]) == 0
        assert denied(name) == {"cilium_cidr_v4_fix": 1, "cilium_cidr_v6_fix": 1}
        capsys.readouterr()
        for option, prefix, words in (
            ("--allow", "192.0.2.0/24", "192.0.2.0/24 is not denied"),
            ("--deny", "192.0.2.1/24", "'192.0.2.1/24' is not a prefix such as 192.0.2.0/24"),
        ):
            assert main(["prefilter", name, option, prefix]) == 2
            assert words in capsys.readouterr().err
        assert main(["prefilter", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [{"lab": name, "denied": ["2001:db8::1/128", "192.0.2.7/32"]}]


def test_all_programs_are_loaded_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that nothing reaches as well; the lab keeps the option until it is taken back."""

    def tail_programs() -> int:
        with open_pin(node.globals / f"cilium_calls_{node.pods[0].endpoint_id:05d}") as calls:
            return len(bpf.map_slots(calls.fd, calls.info.max_entries))

    with removed(unique_name()) as name:
        node = Node.up(NodeSpec(name, pods=1))
        counts = []
        for options in ([], ["--all-programs"], [], ["--no-all-programs"]):
            assert main(["reload", name, *options]) == 0
            counts.append(tail_programs())
        assert counts[0] < counts[1] == counts[2]
        assert counts[3] == counts[0]


def test_one_call_denies_and_allows_all_or_nothing_on_all_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the second node or the second option refuses, the first has not changed."""
    cluster = unique_name()
    with removed(f"{cluster}-1") as first, removed(f"{cluster}-2") as second:
        build(cluster_specs(cluster, 2, pods=0, devices=("eth0",)))
        assert main(["prefilter", first, "--deny", "192.0.2.0/24", "--deny", "198.51.100.0/24"]) == 0
        assert main(["prefilter", second, "--deny", "192.0.2.0/24"]) == 0
        for words in (
            [cluster, "--deny", "192.0.2.7", "--allow", "198.51.100.0/24"],
            [first, "--deny", "192.0.2.7", "--allow", "192.0.2.7"],
            [first, "--allow", "192.0.2.0/24", "--deny", "203.0.113.0/33"],
        ):
            assert main(["prefilter", *words]) == 2
            assert [str(each) for each in stored(Node.open(first))] == ["192.0.2.0/24", "198.51.100.0/24"]
        capsys.readouterr()
        assert main(["prefilter", cluster, "--allow", "192.0.2.0/24", "--deny", "192.0.2.0/25"]) == 0
        assert capsys.readouterr().out.splitlines()[::2] == [
            f"{first}: 198.51.100.0/24, 192.0.2.0/25",
            f"{second}: 192.0.2.0/25",
        ]


def denied(name: str) -> dict[str, int]:
    """Return how many prefixes the maps have that have any."""
    contents = {pin: found.content or {} for pin, found in take(Node.open(name)).pins.items()}
    return {pin: len(found) for pin, found in contents.items() if pin in CIDR_MAPS and found}

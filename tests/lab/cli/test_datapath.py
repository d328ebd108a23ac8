from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.base.mapnames import policy_map
from datapath.kernel import tcx
from datapath.kernel.map import open_pin
from lab.agent.options import Options
from lab.cli.main import main
from lab.node.node import Node
from lab.node.registry import BPFFS, STATE, lab_root
from tests.datapath.support import NEEDS_TCX
from tests.lab.labs import removed, unique_name

pytestmark = pytest.mark.privileged

DEFAULT_SIZE = 16384
"""Entries of a policy map, if no macro says otherwise."""


@pytest.fixture
def lab() -> Iterator[str]:
    with removed(unique_name()) as name:
        assert main(["up", name, "--pods", "1", "-D", "POLICY_MAP_SIZE=256"]) == 0
        yield name


def _policy_map_size(lab: str) -> int:
    node = Node.open(lab)
    with open_pin(node.root / BPFFS / "tc/globals" / policy_map(node.pods[0].endpoint_id)) as found:
        return found.info.max_entries


def test_options_are_kept(lab: str) -> None:
    """A reload without options is one with those of the lab, until others take their place or none are wanted."""
    for options, size in (([], 256), (["-D", "POLICY_MAP_SIZE=512"], 512), ([], 512), (["--defaults"], DEFAULT_SIZE)):
        assert main(["reload", lab, *options]) == 0
        assert _policy_map_size(lab) == size
    assert Options.kept(Node.open(lab)) == Options()


def test_options_of_some_endpoints_or_of_a_failure_are_not(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reload", f"{lab}/pod-1", "-D", "POLICY_MAP_SIZE=512"]) == 0
    assert main(["reload", lab, "-D", "METRICS_MAP=("]) == 1
    assert main(["plan", f"{lab}/pod-1", "-D", "POLICY_MAP_SIZE=128"]) == 0
    assert Options.kept(Node.open(lab)).defines == (("POLICY_MAP_SIZE", "256"),)
    capsys.readouterr()


def test_a_former_version_kept_fewer(lab: str) -> None:
    node = Node.open(lab)
    (node.root / STATE / "options.json").write_text('{"library": null, "defines": [["POLICY_MAP_SIZE", "128"]]}')
    assert Options.kept(node) == Options(defines=(("POLICY_MAP_SIZE", "128"),))
    assert main(["reload", lab]) == 0
    assert _policy_map_size(lab) == 128


def test_policies_are_applied_with_them(lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Entries are written as the lab's own build has them, whoever applies the policy."""
    Options(defines=(("METRICS_MAP", "("),)).keep(Node.open(lab))
    file = tmp_path / "closed.json"
    file.write_text(json.dumps({"name": "closed", "endpoint": "pod-1", "ingress": [{}]}))
    assert main(["policy", lab, str(file)]) == 1
    assert "failed to compile bpf_host.o" in capsys.readouterr().err


def test_a_library_without_sources_is_one_line(lab: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that was right when the lab was made."""
    words = f"reloadlab: {tmp_path} holds no bpf_lxc.c: name a directory such as Cilium's bpf/\n"
    capsys.readouterr()
    assert main(["reload", lab, "--library", str(tmp_path)]) == 2
    assert capsys.readouterr().err == words
    Options(library=str(tmp_path)).keep(Node.open(lab))
    assert main(["reload", lab]) == 2
    assert capsys.readouterr().err == words


@NEEDS_TCX
def test_the_attachment_is_kept(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From tc to tcx, and with no option once more; auto is tcx here. `show` tells each program's."""

    def hooks() -> set[str]:
        capsys.readouterr()
        assert main(["show", lab, "--json"]) == 0
        (node,) = json.loads(capsys.readouterr().out)
        return {name for link in node["interfaces"] for name in (*link["ingress"], *link["egress"])}

    assert not any("tcx" in name for name in hooks())
    for options, by_tcx in ((["--attach", "auto"], True), ([], True), (["--attach", "tc"], False)):
        assert main(["reload", lab, *options]) == 0
        assert {name.endswith(" (tcx)") for name in hooks()} == {by_tcx}
    assert f"cil_from_container-{Node.open(lab).pods[0].ifname}" in hooks()


@pytest.mark.parametrize("command", ["up", "prove", "faults", "bench reload"])
def test_tcx_is_refused_before_anything_is_built(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is built: one line."""
    monkeypatch.setattr(tcx, "is_supported", lambda: False)
    name = unique_name()
    assert main([*command.split(), *([name] if command == "up" else []), "--attach", "tcx"]) == 1
    words = "reloadlab: the kernel has no tcx (Linux 6.6, CONFIG_NET_XGRESS): attach by tc, or auto"
    assert capsys.readouterr().err.splitlines() == [words]
    assert not lab_root(name).exists()

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.bench.topology import TopologyComparison, UpDownTimes, write_script
from lab.cli.main import main
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.tools import run
from tests.lab.labs import cli, ip, start, unique_name


def test_ratio_is_the_median_of_the_rounds() -> None:
    ours = (UpDownTimes(1.0, 1.0), UpDownTimes(2.0, 1.0), UpDownTimes(4.0, 1.0))
    script = (UpDownTimes(3.0, 2.0), UpDownTimes(4.0, 2.0), UpDownTimes(40.0, 2.0))
    row = TopologyComparison(5, ours, script)
    assert (row.ratio("up"), row.ratio("down")) == (3.0, 2.0)
    assert (row.median("lab", "up"), row.median("script", "up")) == (2.0, 4.0)
    series = {each.name: each for each in row.series()}
    assert series["5 pods: script up"].values == (3.0, 4.0, 40.0)
    assert [series[f"5 pods: {side} up"].positions for side in ("lab", "script")] == [(0, 1, 0), (1, 0, 1)]


@pytest.mark.parametrize("arguments", ["--rounds 0", "--pods 0", "--pods 3,-1"])
def test_counts_below_one_are_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "topology", *arguments.split()]) == 2
    assert "is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.privileged
def test_whole_measurement_leaves_nothing() -> None:
    with start(cli("bench", "topology", "--pods", "1,2", "--rounds", "2", "--json")) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    first, *measured = json.loads(out)["series"]
    assert first["name"] == "start of the interpreter"
    sides = [f"{side} {what}" for side in ("lab", "script") for what in ("up", "down")]
    assert [each["name"] for each in measured] == [f"{pods} pods: {each}" for pods in (1, 2) for each in sides]
    assert all(len(each["values"]) == 2 and min(each["values"]) > 0 for each in measured)
    assert "reloadlab-bench" not in Path("/proc/self/mountinfo").read_text()
    assert not registry.lab_root("reloadlab-bench").exists()


@pytest.mark.privileged
def test_script_makes_the_same_node(tmp_path: Path) -> None:
    """The comparison is fair only if both sides build the same links, addresses and routes."""
    spec = NodeSpec(unique_name(), pods=2)
    with Node(spec) as node:
        up, _ = write_script(spec, node.facts, tmp_path)
        # The script's namespaces live and die in a mount namespace of their own.
        names = ("node", "outside", "health", "pod-1", "pod-2")
        dump = tmp_path / "dump.sh"
        prefix = (tmp_path / "namespaces.batch").read_text().split()[2].removesuffix("node")
        dump.write_text(
            "set -e\nmount -t tmpfs none /run\n"
            f"sh {up}\n" + "".join(f"ip -n {prefix}{name} -j -d {what}; echo\n" for name in names for what in LOOKS)
        )
        lines = run(["unshare", "--mount", "sh", str(dump)]).splitlines()
        answers = iter(line for line in lines if line.strip())
        for name in names:
            for what in LOOKS:
                theirs = [item for item in json.loads(next(answers)) if item]
                assert comparable(theirs) == comparable(ip(node.netns(name), *what.split())), (name, what)


LOOKS = ("link", "addr", "route", "-6 route")
# The script leaves the pods' sysctls alone, hence their link-local addresses are detected for a while.
_VOLATILE = {
    "tentative",
    "link_netnsid",
    "valid_life_time",
    "preferred_life_time",
    "operstate",
    "ageing",
    "pref",
    "netnsid",
}


def comparable(value: Any) -> Any:
    """Return what `ip` says without what differs from one namespace to the next."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return sorted((comparable(item) for item in value), key=repr)
    return value

"""Loaders around tc: ours, and the one in shell of docs/loaders.md, as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel.map import open_pin
from datapath.kernel.pins import left_behind
from lab.loaders.command import LoaderCommand, find_loader
from lab.loaders.protocol import Done, LoaderFailed
from lab.loaders.tc import Refused
from lab.node.topology import HOST, NodeSpec
from lab.proof.actions import reloads
from lab.proof.cases import Case, Faults
from lab.proof.sweep import sweep
from lab.scenario.gate import Gate
from lab.scenario.scenario import Scenario
from lab.system.launch import module_argv

DOCUMENT = Path(__file__).parents[3] / "docs" / "loaders.md"
BY_OURS = "host: loaded by the built-in loader"


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled templates of all nodes here."""
    return tmp_path_factory.mktemp("templates")


def test_pods_are_loaded_by_tc_without_loss(templates: Path) -> None:
    """In the mode with both hooks and routes; a pod is removed as well; the host is left to the built-in loader.

    A late removal leaves the pod that came after, whose interface has the name that the former one's had: the checks
    find its programs (cilium issue 44530).
    """
    spec = NodeSpec("seam-tc", pods=1, endpoint_routes=True)
    with Scenario(spec, loader=find_loader("tc"), templates=templates) as scenario:
        (outcome,) = scenario.reload("pod-1")
        assert [span.step for span in outcome.spans][-1] == "load by tc"
        (loaded,) = outcome.loaded
        assert {name: bool(slots) for name, slots in loaded.slots.items()} == {
            "cilium_call_policy": True,
            "cilium_calls_00101": True,
        }
        scenario.reload(HOST)
        scenario.agent.add_pod("more")
        scenario.agent.remove_pod("more")

        present = scenario.agent.endpoint("pod-1")
        assert present.ifindex is not None
        former = replace(
            present,
            id=present.id + 1000,
            ifindex=present.ifindex + 1000,
            ipv4=IPv4Address("10.244.15.200"),
            ipv6=IPv6Address("fd00:10:244::ff00"),
        )
        scenario.agent.unload_endpoint(former, str(former.id), forget=lambda: None)
    assert scenario.gaps == [f"not supported by loader tc: {BY_OURS}"]


@pytest.fixture(scope="module")
def quiet(templates: Path) -> Iterator[Scenario]:
    """A pod without traffic."""
    with Scenario(NodeSpec("seam-quiet", pods=1), rate=0, loader=find_loader("tc"), templates=templates) as scenario:
        yield scenario


def test_a_map_with_entries_of_another_size_is_filled_before_the_loader_is_asked(quiet: Scenario) -> None:
    """Another release has left it. A loader would put an empty one in its place, and attach before anybody fills it."""
    name = "cilium_policy_00101"
    path = quiet.agent.config.globals / name
    seen: list[tuple[int, int]] = []

    def look(*_: object) -> None:
        with open_pin(path) as policy:
            seen.append((policy.info.value_size, len(list(policy.keys()))))

    look()
    quiet.define(POLICY_VALUE_PAD="1")
    quiet.expect(migrated={name})
    quiet.reload("pod-1", gate=Gate(look, before="load by tc"))
    ((size, count), padded) = seen
    assert count > 0
    assert padded == (size + 8, count)


def test_a_reload_that_fails_before_tc_is_an_answer_and_leaves_nothing_aside(
    quiet: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects are gone: no link to them can be made. The process goes on."""
    external = quiet.agent.external
    assert external is not None
    ask, pid = external.ask, external.pid

    def astray(request: Mapping[str, Any], *, cancel: threading.Event | None = None) -> Done:
        attach = [{**hook, "object": "/no/such/directory/bpf_lxc.o"} for hook in request["attach"]]
        return ask({**request, "attach": attach}, cancel=cancel)

    monkeypatch.setattr(external, "ask", astray)
    with pytest.raises(LoaderFailed, match=r"/no/such/directory/.*No such file or directory"):
        quiet.agent.reload("pod-1")
    assert (external.pid, left_behind(quiet.agent.config.globals)) == (pid, frozenset())
    monkeypatch.undo()
    quiet.reload("pod-1")


def test_what_cannot_be_removed_is_no_success() -> None:
    """Without the capability to change the network; what is not there is no error."""
    unload = {"request": "unload", "interface": "lo", "ifindex": None, "endpoint": {"ipv4": "127.9.9.9", "ipv6": None}}
    gone = {**unload, "interface": "gone"}
    argv = ["setpriv", "--inh-caps", "-net_admin", "--bounding-set", "-net_admin", *module_argv("lab.loaders.tc")]
    lines = "".join(f"{json.dumps(request)}\n" for request in (unload, gone))
    for words, ok in ((argv, [False, True]), (module_argv("lab.loaders.tc"), [True, True])):
        done = subprocess.run(words, input=lines, capture_output=True, text=True, timeout=60, check=True)
        assert [json.loads(line)["ok"] for line in done.stdout.splitlines()] == ok
        assert done.stderr == ""


def test_what_tc_refuses_is_told_with_the_reason_and_the_line() -> None:
    """The text is that of tc 6.1 with an object for another library."""
    old = "libbpf: elf: legacy map definitions in 'maps' section are not supported by libbpf v1.0+"
    said = f"{old}\nERROR: opening BPF object file failed\nCommand failed -:2\n"
    assert str(Refused(["exec one", "exec two"], 1, said)) == f"{old} (tc -batch: exec two)"
    assert str(Refused(["exec one"], 1, "")) == "no message (tc -batch)"
    assert str(Refused(["exec one"], -9, "libbpf: a warning\n")) == "killed by SIGKILL (tc -batch)"


KILLED = {"before the policy slot": "MAP_UPDATE cilium_call_policy*", "after it": "RTM_NEWTFILTER * ingress"}
"""Calls of tc at which it is killed; a node whose case was not survived is the last one's."""


@pytest.fixture(scope="module")
def killed(templates: Path) -> Mapping[str, Case]:
    """What came of a reload whose tc was killed at each of these calls."""
    spec = NodeSpec("seam-tc-killed", pods=1)

    def choose(cases: Sequence[Case]) -> Sequence[Case]:
        return [[case for case in cases if case.place.fits(wanted)][-1] for wanted in KILLED.values()]

    swept = sweep(
        spec,
        reloads(spec, ["pod-1"], []),
        faults=Faults(errnos=lambda call: ()),
        choose=choose,
        loader=find_loader("tc"),
        templates=templates,
    )
    return dict(zip(KILLED, swept.cases, strict=True))


@pytest.mark.parametrize(("where", "differs"), [("before the policy slot", False), ("after it", True)])
def test_what_is_left_when_tc_is_killed_answers_packets(where: str, differs: bool, killed: Mapping[str, Case]) -> None:
    """At the filter, the policy program is the new one, and that at the hook the old one: each keeps its calls map.

    Before the first of both, all is as it was.
    """
    case = killed[where]
    assert case.ended == "failed: loader tc: killed by SIGKILL (tc -batch)"
    assert [line for line in case.wrong if "differ" not in line] == []
    assert bool(case.wrong) == differs


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_loader_in_shell_of_the_document_loads_pods(templates: Path, tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path = tmp_path / "loader"
    path.write_text(script)
    path.chmod(0o700)
    loader = LoaderCommand("shell", (str(path),))
    with Scenario(NodeSpec("seam-shell", pods=1), loader=loader, templates=templates) as scenario:
        (outcome,) = scenario.reload("pod-1")
        assert [span.step for span in outcome.spans][-1] == "load by tc in shell"
    assert scenario.gaps == [f"not supported by loader tc in shell: {BY_OURS}"]

"""Cilium's own loader, built by hand around a checkout: RELOADLAB_LOADER is its command, RELOADLAB_CILIUM_BPF the C."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from datapath.endpoint import Attachment
from datapath.kernel import bpf
from datapath.kernel.hooks import Direction
from datapath.kernel.map import open_pin
from datapath.reload.plans import OVERLAY_SUBJECT
from lab.agent.agent import Agent
from lab.agent.gated import under_gates
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Decide, Fail
from lab.loaders.command import find_loader
from lab.loaders.protocol import LoaderFailed
from lab.node.topology import HEALTH, HOST, NodeSpec
from lab.proof.actions import reloads
from lab.proof.cases import Case, Faults
from lab.proof.prove import prove
from lab.proof.sweep import sweep
from lab.proof.watched import conclude
from lab.scenario.scenario import Scenario
from lab.watch.snapshot import take
from tests.datapath.support import NEEDS_TCX

LOADER = os.environ.get("RELOADLAB_LOADER")
TREE = os.environ.get("RELOADLAB_CILIUM_BPF")
ADAPTERS = Path(__file__).resolve().parents[3] / "lab" / "loaders" / "cilium"

ROUNDS = 6
"""Of nine reloads seven lost packets: in which order the slots are filled is chance. So many lose none very rarely."""

REFERENCE = "1.14.0-snapshot.2"
"""VERSION of the reference commit's tree."""

REPLACED_BEFORE_THE_LOAD = (REFERENCE, "1.14.", "1.15.")
"""Releases that replace a map whose size differs before they load; later ones pin at the end."""

BY_TCX = ("1.16.", "1.17.", "1.18.", "1.19.")
"""Releases that attach by tcx where they are told to."""

DIRECTORY_OF_LINKS = re.compile(r"pin cilium/(devices|endpoints)/[^/]+(/links)? is left over")

PATIENCE = 60
"""Seconds that one of two reloads waits for the other."""

needs_loader = pytest.mark.skipif(LOADER is None, reason="RELOADLAB_LOADER is no command of Cilium's loader")
needs_tree = pytest.mark.skipif(TREE is None, reason="RELOADLAB_CILIUM_BPF does not name the bpf/ of a Cilium checkout")


def skip_unless(*versions: str) -> None:
    """Skip the test unless the tree is of a release that begins so."""
    version = (Path(TREE or "").parent / "VERSION").read_text().strip()
    if not version.startswith(versions):
        pytest.skip(f"{version} does it otherwise, or was not looked at")


def kinds_of_programs(scenario: Scenario) -> set[str]:
    """Return how the programs of ours are attached: `tcx`, or `bpf` for filters."""
    return {each.kind for found in take(scenario.node).filters.values() for each in found if each.is_ours}


def ask(*lines: str) -> list[dict[str, object]]:
    """Return the answers of a loader without a node, which ends when there is no more to read."""
    done = subprocess.run(
        shlex.split(LOADER or ""), input="".join(f"{line}\n" for line in lines), stdout=subprocess.PIPE, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_loader
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nonsense", "invalid character"),
        ('{"request": "hello", "version": 2, "node": {}}', "version 2"),
        ('{"request": "hello", "version": 1}', "no node"),
        ('{"request": "hello", "version": 1, "node": {"bpffs": "/tmp"}}', "/tmp"),
        ('{"request": "reload", "kind": "pod", "endpoint": {"id": 1}}', "before hello"),
    ],
    ids=["nonsense", "version", "no-node", "other-bpffs", "no-hello"],
)
def test_a_request_that_cannot_be_done_is_answered_with_an_error(line: str, error: str) -> None:
    (answer,) = ask(line)
    assert answer["ok"] is False
    assert error in str(answer["error"])


@needs_loader
def test_it_ends_when_it_is_told_to() -> None:
    assert ask('{"request": "stop"}', "nonsense") == []


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "endpoint_routes", "attach"),
    [
        ("", True, Attachment.TC),
        (" -compile", False, Attachment.TC),
        pytest.param(" -compile", True, Attachment.TCX, marks=NEEDS_TCX),
    ],
    ids=["objects-routes-on", "compiled-routes-off", "compiled-routes-on-tcx"],
)
def test_every_kind_is_loaded_and_the_node_is_as_it_must_be(
    options: str, endpoint_routes: bool, attach: Attachment
) -> None:
    """The hooks, the slots, the maps and the routes are checked, after a load, a reload and the removal of a pod."""
    if attach is Attachment.TCX:
        skip_unless(*BY_TCX)
    spec = NodeSpec("cilium-kinds", pods=1, devices=("eth0",), tunnel=True, endpoint_routes=endpoint_routes)
    loader, library = find_loader(f"{LOADER}{options}"), Path(TREE or "")
    with Scenario(spec, rate=0, loader=loader, library=library, attach=attach) as scenario:
        for subject in (HOST, OVERLAY_SUBJECT, HEALTH, "pod-1"):
            (outcome,) = scenario.reload(subject)
            assert outcome.spans[-1].step.startswith("load by cilium")
            assert outcome.attached
        scenario.agent.add_pod("more")
        scenario.agent.remove_pod("more")
        assert not scenario.agent.not_supported
        assert kinds_of_programs(scenario) == {"tcx" if attach is Attachment.TCX else "bpf"}


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
@NEEDS_TCX
def test_programs_go_from_tc_to_tcx_and_back() -> None:
    """All of a node. The directories of the links stay, empty (docs/releases.md)."""
    skip_unless(*BY_TCX)
    spec = NodeSpec("cilium-tcx", pods=1, devices=("eth0",), tunnel=True)
    with Scenario(spec, rate=0, loader=find_loader(LOADER or ""), library=Path(TREE or "")) as scenario:
        for attach in (Attachment.TCX, Attachment.TC):
            scenario.agent.configure(attach=attach)
            scenario.reload()
            assert kinds_of_programs(scenario) == {"tcx" if attach is Attachment.TCX else "bpf"}
        conclude(scenario)
        left = {each.what for each in scenario.findings}
        # No link, and nothing else.
        assert {what for what in left if not DIRECTORY_OF_LINKS.fullmatch(what)} == set()
        assert left


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
def test_routes_of_pods_are_left_over_when_endpoint_routes_are_switched_off() -> None:
    """They come when they are switched on, and nothing but that is wrong when they are off again (docs/releases.md)."""
    spec = NodeSpec("cilium-switch", pods=1)
    with Scenario(spec, rate=0, loader=find_loader(LOADER or ""), library=Path(TREE or "")) as scenario:
        scenario.expect(other_path=True)
        for on in (True, False):
            # One at a time: each process of the loader compiles by itself.
            scenario.agent.set_endpoint_routes(on, workers=1)
        conclude(scenario)
        found = {(each.invariant, each.what.partition(":")[0]) for each in scenario.findings}
        # A direct route leads to each, for a while or for good, past an egress hook that has no program any more.
        assert found == {(number, name) for number in (5, 15) for name in (HEALTH, "pod-1")}


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
def test_a_cancellation_that_comes_before_its_request_is_kept() -> None:
    """Nothing is loaded any more. What has no endpoint cannot be unloaded."""
    spec = NodeSpec("cilium-cancel", pods=1)
    with Scenario(spec, rate=0, loader=find_loader(LOADER or ""), library=Path(TREE or "")) as scenario:
        external = scenario.agent.external
        assert external is not None
        with pytest.raises(LoaderFailed, match="without an endpoint"):
            external.ask({"request": "unload", "kind": "overlay"})
        os.kill(external.pid, signal.SIGTERM)
        said, deadline = "", time.monotonic() + 10
        while "context canceled" not in said:
            assert time.monotonic() < deadline, said
            with pytest.raises(LoaderFailed) as raised:
                external.ask({"request": "reload", "kind": "overlay"})
            said = str(raised.value)


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
def test_packets_are_lost_between_the_slots_of_a_calls_map_that_is_reused() -> None:
    """The old program is attached when the slots change: writer and reader of its buffer belong to two loads."""
    spec, loader, library = NodeSpec("cilium-buffer", pods=1), find_loader(LOADER or ""), Path(TREE or "")
    skip_unless(REFERENCE)
    proof = prove(spec, reloads(spec, ["pod-1"], []), rounds=ROUNDS, loader=loader, library=library)
    lost = [finding for finding in proof.findings if finding.violation.invariant == 7]
    assert any("Failed to update or lookup TC buffer" in finding.violation.what for finding in lost)
    # Between two slots, or behind the last of them, when the old program is attached still.
    names = {finding.gated.call.text for finding in lost if finding.gated is not None}
    assert any(name.startswith("MAP_UPDATE cilium_calls_") for name in names), names


def during_a_migration(name: str, faults: Faults) -> Sequence[Case]:
    """Return the cases of a pod's reload by a build with another policy map, there and back: one program is loaded."""
    if "-compile" in shlex.split(LOADER or ""):
        pytest.skip("it takes no other macros: it compiles by itself")

    def choose(cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if case.place.fits("PROG_LOAD tail_handle_arp")]

    spec = NodeSpec(name, pods=1)
    actions, library = reloads(spec, ["pod-1"], [("POLICY_MAP_SIZE", "4096")]), Path(TREE or "")
    return sweep(spec, actions, faults=faults, choose=choose, loader=find_loader(LOADER or ""), library=library).cases


def left_pending(case: Case) -> bool:
    """Tell whether the full policy map is still moved aside after a case."""
    return any("cilium_policy_00101:pending" in wrong for wrong in case.wrong)


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
def test_a_migration_is_not_put_back_when_the_load_fails() -> None:
    """The empty map stays pinned, the full one at `:pending`; the next reload takes the empty one."""
    skip_unless(*REPLACED_BEFORE_THE_LOAD)
    cases = during_a_migration("cilium-revert", Faults(lambda call: (errno.EACCES,), kill=False))
    assert [case.ended.partition(":")[0] for case in cases] == ["failed", "failed"]
    assert all(left_pending(case) for case in cases)
    assert all("not answered after the next one" in "".join(case.wrong) for case in cases)


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
def test_a_migration_is_not_put_back_when_the_reload_is_cancelled() -> None:
    """It is cancelled while it loads, and ends before it attaches."""
    skip_unless(REFERENCE)
    cases = during_a_migration("cilium-cancelled", Faults(lambda call: (), kill=False, cancel=True))
    assert [case.ended.rpartition(": ")[2] for case in cases] == ["context canceled", "context canceled"]
    assert all(left_pending(case) for case in cases)


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
def test_a_pod_is_bare_when_the_load_of_a_switch_fails() -> None:
    """The program at its egress hook goes before the load; its direct route stays, and so does the old program."""
    skip_unless(*REPLACED_BEFORE_THE_LOAD)
    spec, library = NodeSpec("cilium-bare", pods=1, endpoint_routes=True), Path(TREE or "")
    with Scenario(spec, rate=0, loader=find_loader(LOADER or ""), library=library) as scenario:
        ifname = scenario.node.pod("pod-1").ifname
        ingress, egress = ((ifname, direction) for direction in Direction)
        before = take(scenario.node).filters

        def refuse(call: Call) -> Answer:
            return Fail(errno.EACCES) if call.text == "PROG_LOAD tail_handle_arp" else None

        def switch(cancelled: threading.Event) -> None:
            scenario.agent.set_endpoint_routes(False, cancel=cancelled)

        with pytest.raises(LoaderFailed, match="tail_handle_arp: load program: permission denied"):
            under_gates(scenario.agent, switch, refuse)
        now = take(scenario.node).filters
        assert len(before[egress]) == 1
        assert not now.get(egress)
        assert now[ingress] == before[ingress]
        conclude(scenario)
        (found,) = [each.what for each in scenario.findings if each.invariant == 15 and each.what.startswith("pod-1:")]
        assert "a direct route led" in found
        assert "whose egress hook had no program from then on" in found


class Overtaken:
    """Two reloads that replace one map: the first has removed its pin, and waits until the second has pinned its own.

    The second has found the map before that, and removes the pin of nobody.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._second_removes, self._first_pins, self._second_has_pinned = (threading.Event() for _ in range(3))
        self._pins = False

    def first(self, call: Call) -> None:
        if self._name in call.pattern and call.name == "unlinkat":
            assert self._second_removes.wait(PATIENCE)
        elif self._name in call.pattern and call.name == "OBJ_PIN":
            self._first_pins.set()
            assert self._second_has_pinned.wait(PATIENCE)

    def second(self, call: Call) -> None:
        if self._pins:
            self._second_has_pinned.set()
        if self._name in call.pattern and call.name == "unlinkat":
            self._second_removes.set()
            assert self._first_pins.wait(PATIENCE)
        elif self._name in call.pattern and call.name == "OBJ_PIN":
            self._pins = True


def give_another_size(agent: Agent, name: str) -> None:
    """Pin an empty map of another size in the place of one, as an agent of another release has left it."""
    path = agent.config.globals / name
    with open_pin(path) as found:
        info = found.info
    sizes = info.type, info.key_size, info.value_size, info.max_entries // 2
    fd = bpf.map_create(*sizes, flags=info.flags, name=info.name)
    try:
        path.unlink()
        bpf.obj_pin(fd, path)
    finally:
        os.close(fd)


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
def test_of_two_reloads_that_replace_a_map_of_all_pods_one_fails() -> None:
    """#36094: the pin is removed, then made; whoever comes between has made it already."""
    library, shared = Path(TREE or ""), "cilium_ratelimit"
    skip_unless("1.16.", "1.17.")
    spec, overtaken, failed = NodeSpec("cilium-commit", pods=2), Overtaken("cilium_ratelimit"), dict[str, str]()
    with Scenario(spec, rate=0, loader=find_loader(LOADER or ""), library=library) as scenario:
        scenario.expect(migrated={shared})
        give_another_size(scenario.agent, shared)

        def reload(pod: str, decide: Decide) -> None:
            def do(cancelled: threading.Event) -> None:
                scenario.agent.reload(pod, cancel=cancelled)

            try:
                under_gates(scenario.agent, do, decide, look_ups=False, forked=True)
            except LoaderFailed as error:
                failed[pod] = str(error)

        both = [("pod-1", overtaken.first), ("pod-2", overtaken.second)]
        threads = [threading.Thread(target=reload, args=each) for each in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(failed) == ["pod-1"]
        assert "committing bpf pins" in failed["pod-1"]
        assert failed["pod-1"].endswith("file exists")
        scenario.reload("pod-1")


@needs_loader
@needs_tree
@pytest.mark.privileged
@pytest.mark.slow
@NEEDS_TCX
def test_a_link_whose_pin_is_elsewhere_stays_before_the_new_one() -> None:
    """#47847: the loader finds a link by its pin alone, and attaches another one behind that which it does not find."""
    skip_unless(*BY_TCX)
    spec, library = NodeSpec("cilium-hidden", pods=1), Path(TREE or "")
    with Scenario(spec, rate=0, loader=find_loader(LOADER or ""), library=library, attach=Attachment.TCX) as scenario:
        pod = scenario.node.pod("pod-1")
        hook = pod.ifname, Direction.INGRESS
        (old,) = take(scenario.node).filters[hook]
        config = scenario.agent.config
        (config.endpoint_links(pod.endpoint_id) / "cil_from_container").rename(config.globals / "elsewhere")
        scenario.agent.reload("pod-1")
        first, _second = take(scenario.node).filters[hook]
        assert first.program_id == old.program_id
        conclude(scenario)
        # The map through which the first program jumps has lost its pin, and is emptied.
        assert {each.invariant for each in scenario.findings} == {1, 2, 9}


@pytest.mark.skipif(shutil.which("gofmt") is None, reason="there is no gofmt")
def test_the_adapters_are_formatted() -> None:
    done = subprocess.run(["gofmt", "-l", ADAPTERS], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_no_build_of_cilium_sees_the_adapters_unless_it_is_asked_to() -> None:
    sources = sorted(ADAPTERS.rglob("*.go"))
    assert sources
    for source in sources:
        constraint = next(line for line in source.read_text().splitlines() if line.startswith("//go:build "))
        assert "cilium1" in constraint

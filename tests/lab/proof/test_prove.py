"""The proof of a reload: clean for our loader, and what a faulty one does is found at its call."""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.endpoint import Attachment
from datapath.errors import Cancelled
from datapath.kernel import bpf
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from datapath.reload.xdp import AttachXdp
from lab.corpus.named_xdp import AttachAnew
from lab.corpus.steps import instead
from lab.gates.call import Call
from lab.gates.seccomp import number_of
from lab.node import registry
from lab.node.topology import NodeSpec
from lab.proof.action import RATE, Action
from lab.proof.actions import reattaches, reloads, switches
from lab.proof.denied import Denied
from lab.proof.prove import Prover, do_met, prove
from lab.proof.result import Gated, Proof
from lab.scenario.scenario import Scenario
from tests.datapath.support import NEEDS_TCX
from tests.lab.emptied import EmptySlot, before
from tests.lab.proof.gaps import gaps_of
from tests.lab.proof.lost import assert_lost_behind, lost_at
from tests.lab.proof.refused import refused

pytestmark = pytest.mark.privileged

LINKS = ("LINK_CREATE", "LINK_UPDATE", "LINK_DETACH")
GAP = 0.001
"""Seconds that a slot stays empty by itself: packets come at the next call, however soon that is."""


@dataclass
class Counting(Prover):
    """A proof that notes before which of its calls packets went through."""

    met: list[int] = field(default_factory=list)

    def _burst(self, call: Call, *, only_added: bool = False) -> None:
        self.met.append(len(self.calls))
        super()._burst(call, only_added=only_added)


def counted(spec: NodeSpec, actions: Sequence[Action]) -> tuple[Proof, list[int]]:
    """Prove actions; return the proof, and the numbers, from 1 on, of the calls before which packets went through."""
    with Scenario(spec, bursts="none", rate=RATE) as scenario:
        prover = Counting(scenario, Denied.by(scenario))
        for action in actions:
            do_met(prover, scenario, action, 1)
        return prover.conclude([]), prover.met


def changed_before(calls: Sequence[Gated]) -> set[int]:
    """Return the numbers of the calls behind a change, but for those within a series of updates of one map."""
    pairs = enumerate(itertools.pairwise(calls), 2)
    return {
        number
        for number, (before, gated) in pairs
        if before.call.changes and not (gated.call.map and gated.call.map == before.call.map)
    }


def test_no_call_of_our_loader_loses_a_packet() -> None:
    spec = NodeSpec("proof-of-ours", endpoint_routes=True)
    proof, met = counted(spec, reloads(spec, ["pod-1"], []))
    assert proof.findings == []
    assert (proof.lost, gaps_of(proof.gaps)) == (0, [])
    assert proof.holds, proof.undecided
    texts = [gated.call.text for gated in proof.calls]
    assert "MAP_UPDATE cilium_call_policy[101]" in texts
    attached = [text.split() for text in texts if text.startswith("RTM_NEWTFILTER lxc")]
    assert sorted(hook for _, _, hook in attached) == ["egress", "ingress"]
    owed = changed_before(proof.calls)
    assert len(owed) > len(texts) / 4
    assert owed - set(met) == set()


@pytest.mark.parametrize(
    "actions",
    [
        lambda spec: reloads(spec, ["health"], []),
        lambda spec: reloads(spec, ["overlay"], []),
        lambda spec: reloads(spec, ["pod-1"], [("POLICY_MAP_SIZE", "4096")]),
        switches,
    ],
    ids=["health", "overlay", "migration", "switch"],
)
def test_no_call_of_any_kind_of_reload_loses_a_packet(actions: Callable[[NodeSpec], list[Action]]) -> None:
    spec = NodeSpec("proof-of-kinds", pods=1, tunnel=True)
    wanted = actions(spec)
    proof, met = counted(spec, wanted)
    assert (proof.findings, proof.lost, gaps_of(proof.gaps)) == ([], 0, [])
    assert proof.holds, proof.undecided
    assert {gated.what for gated in proof.calls} == {action.name for action in wanted}
    assert changed_before(proof.calls) - set(met) == set()


@NEEDS_TCX
def test_no_call_from_tc_to_tcx_and_back_loses_a_packet() -> None:
    spec = NodeSpec("proof-of-tcx", pods=1)
    proof, met = counted(spec, reattaches(spec, ["pod-1"], Attachment.TC))
    assert (proof.findings, proof.lost) == ([], 0)
    assert proof.holds, proof.undecided
    assert [gap.partition(":")[0] for gap in gaps_of(proof.gaps)] == ["tcx hooks between two looks"]
    named = [gated.call.text.split(" of ")[0] for gated in proof.calls if gated.call.name in LINKS]
    assert named == ["LINK_CREATE TCX_INGRESS", "LINK_UPDATE TCX_INGRESS", "LINK_DETACH TCX_INGRESS"]
    assert changed_before(proof.calls) - set(met) == set()


def test_no_call_at_xdp_lets_a_denied_packet_pass_but_one_of_a_change_of_the_mode() -> None:
    """XDP alone decides on these: in place at no call, in another mode between the two that the kernel wants."""
    spec = NodeSpec("proof-of-xdp", pods=1, devices=("eth0",), xdp="native")
    changes = reattaches(spec, ["xdp"], Attachment.TC)
    proof, met = counted(spec, [*reloads(spec, ["xdp"], []), *changes])
    assert (proof.findings, proof.lost) == ([], 0)
    assert proof.holds, proof.undecided
    named = [gated.call.text.partition(" of ")[0] for gated in proof.calls if gated.call.name in LINKS]
    assert named == ["LINK_UPDATE XDP", *["LINK_DETACH XDP", "LINK_CREATE XDP"] * 2]
    assert changed_before(proof.calls) - set(met) == set()
    strict = prove(spec, [replace(change, empties=None) for change in changes])
    at = [finding.gated.call.text.partition(" of ")[0] for finding in strict.findings if finding.gated is not None]
    assert at == ["LINK_CREATE XDP"] * 4
    assert {finding.violation.what for finding in strict.findings} == {
        f"a packet of IPv{version} from a prefix that XDP denies was not dropped" for version in (4, 6)
    }


def test_what_xdp_drops_is_seen_in_whatever_map_its_program_counts() -> None:
    """Another load has one of its own for a while, and that of the program at the hook is not the pinned one."""
    spec = NodeSpec("proof-of-counters", pods=1, devices=("eth0",), xdp="native")
    proof = prove(spec, reloads(spec, ["xdp"], [("METRICS_MAP_SIZE", "2048")]))
    assert [finding.violation.what for finding in proof.findings] == []


def test_an_xdp_hook_that_is_empty_at_a_call_is_found() -> None:
    """Of a loader that detaches the former program before it attaches the new one, in the same mode."""

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.change = instead({AttachXdp: AttachAnew})
        scenario.agent.reload("xdp", cancel=cancel)

    spec = NodeSpec("proof-of-empty-xdp", pods=1, devices=("eth0",), xdp="native")
    proof = prove(spec, [Action("reload of xdp", reload)])
    passed = [finding for finding in proof.findings if "from a prefix that XDP denies" in finding.violation.what]
    assert len(passed) == 2
    detached = next(n for n, gated in enumerate(proof.calls) if gated.call.name == "LINK_DETACH")
    assert {finding.gated for finding in passed} == {proof.calls[detached + 1]}


def test_the_call_at_which_packets_are_lost_is_named() -> None:
    """The slot is empty from the call after its deletion until it is filled again, and nowhere else."""

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.change = before("attach ingress", EmptySlot("slot", GAP, missed=0))
        scenario.agent.reload("pod-1")

    proof = prove(NodeSpec("proof-of-fault"), [Action("reload of pod-1", reload)])
    assert_lost_behind(proof, "MAP_DELETE cilium_call_policy[101]")
    document = proof.to_json()
    assert json.loads(json.dumps(document)) == document
    assert {finding["call"] for finding in document["findings"]} >= lost_at(proof).keys()


def test_a_reload_that_fails_is_a_finding() -> None:
    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.define(REJECTED_BY_VERIFIER="1")
        scenario.agent.reload("pod-1")

    proof = prove(NodeSpec("proof-of-failure"), [Action("reload of pod-1", reload)])
    assert not proof.holds
    assert "reload of pod-1 failed" in proof.findings[0].violation.what


def test_a_series_of_updates_is_met_at_some_of_them() -> None:
    """The first, the last, and those between whose number is a power of 4; another map's are met at once."""

    def update(scenario: Scenario, cancel: threading.Event) -> None:
        for count in (20, 3):
            fd = bpf.map_create(MapType.HASH, 4, 4, 32, name=f"series_{count}")
            for key in range(count):
                bpf.map_update(fd, struct.pack("=I", key), bytes(4))
                bpf.map_lookup(fd, struct.pack("=I", key), 4)
            os.close(fd)

    with Scenario(NodeSpec("proof-series", pods=1), bursts="none", rate=10) as scenario:
        prover = Counting(scenario)
        do_met(prover, scenario, Action("updates", update), 1)
        scenario.finish()
    texts = [gated.call.text.partition("[")[0] for gated in prover.calls]
    assert len(texts) == 1 + 20 + 1 + 3 + 1
    assert (texts[0], texts[21], texts[-1]) == ("MAP_CREATE series_20", "MAP_CREATE series_3", "the end")
    # By the number of the call that waits: what the updates of the numbers 1, 4 and 16 have left is met, then the 20th.
    met_after = [texts[: at - 1].count("MAP_UPDATE series_20") for at in prover.met if 3 <= at <= 22]
    assert met_after == [1, 4, 16, 20]
    assert prover.met[:2] == [1, 2]
    assert prover.met[-1] == len(texts)


def test_a_call_of_another_thread_that_is_under_way_is_told() -> None:
    """Packets at a call may come before that one has changed anything."""

    def do(scenario: Scenario, cancel: threading.Event) -> None:
        pipe, ids = scenario.agent.config.state / "pipe", list[int]()
        os.mkfifo(pipe)

        def write() -> None:
            ids.append(threading.get_native_id())
            os.close(os.open(pipe, os.O_WRONLY))

        thread = threading.Thread(target=write)
        thread.start()
        number = str(number_of("openat"))
        while not ids or Path(f"/proc/self/task/{ids[0]}/syscall").read_text().split()[0] != number:
            time.sleep(0.001)
        (pipe.parent / "beside").mkdir()
        os.close(os.open(pipe, os.O_RDONLY))
        thread.join()
        (pipe.parent / "beside").rmdir()
        pipe.unlink()

    with Scenario(NodeSpec("proof-beside", pods=1), bursts="none", rate=10) as scenario:
        prover = Prover(scenario)
        do_met(prover, scenario, Action("beside", do), 1)
        scenario.finish()
    pipe = scenario.agent.config.state / "pipe"
    told = [(gated.call.text, gated.under_way) for gated in prover.calls[:3]]
    assert told == [
        (f"openat {pipe}", ()),
        (f"mkdir {pipe.with_name('beside')}", (f"openat {pipe}",)),
        (f"rmdir {pipe.with_name('beside')}", ()),
    ]
    assert prover.calls[1].title.endswith(f", during openat {pipe}")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pod-9"], "no subject pod-9: there are host, health, pod-1, pod-2; --pods N gives it more pods"),
        (["overlay"], "no subject overlay: it takes --tunnel"),
        (["--with", "1x"], "'1x' is not the name of a macro"),
        (["--library", "/nowhere"], "/nowhere holds no bpf_lxc.c"),
        (["--rounds", "0"], "0"),
        (["--switch", "host"], "--switch switches the whole node"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["prove", *argv], capsys)


def test_a_cancelled_proof_stops_no_more_calls_and_leaves_nothing() -> None:
    """What is left of a long reload is not stopped any more, and nothing stays of the node."""
    cancel = threading.Event()

    def reload(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.reload("pod-1")

    cancel.set()
    with pytest.raises(Cancelled):
        prove(NodeSpec("proof-cancelled"), [Action("reload of pod-1", reload)], cancel=cancel)
    # Other tests have labs of their own meanwhile.
    assert "proof-cancelled" not in {lab.name for lab in registry.list_labs()}


def test_without_a_stopped_call_nothing_is_said() -> None:
    """What does nothing has no call at which a packet could have met something."""
    proof = prove(NodeSpec("proof-of-nothing", pods=1), [Action("nothing", lambda scenario, cancel: None)])
    assert [gated.call.name for gated in proof.calls] == ["the end"]
    assert (proof.findings, proof.undecided) == ([], "no verdict: no system call was stopped")
    assert not proof.holds


@dataclass(frozen=True)
class StopTraffic(Step):
    """Stop the process of the traffic for some seconds."""

    pid: int
    name = "stop traffic"

    def describe(self) -> str:
        return f"stop process {self.pid}"

    def apply(self, work: Workspace) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        threading.Timer(2.0, os.kill, (self.pid, signal.SIGCONT)).start()


@pytest.mark.parametrize("late", [0, 1])
def test_without_cpu_between_the_calls(late: int) -> None:
    """It is enough that packets were answered at each call; if they were not, nothing can be said."""

    def starved(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.change = before("attach ingress", StopTraffic("traffic", scenario.traffic.pid))
        scenario.agent.reload("pod-1", cancel=cancel)

    with Scenario(NodeSpec("proof-starved", pods=1), bursts="none", rate=RATE) as scenario:
        prover = Prover(scenario)
        do_met(prover, scenario, Action("starved", starved), 1)
        prover.late = late
        proof = prover.conclude([])
    assert proof.findings == []
    blind = proof.undecided or proof.gaps[-1]
    assert blind.startswith("no verdict: the traffic got no CPU for ")
    assert proof.holds == (late == 0)

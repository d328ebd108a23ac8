"""The life of a node: what builds it, changes it and takes it away fails or dies at each of its system calls.

After each case the same can be done once more, or the lab removed first, and nothing of it is left then.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.endpoint import Attachment
from datapath.errors import Cancelled, ReloadlabError, WrongCall
from datapath.kernel import bpf
from lab.agent.agent import Agent
from lab.errors import LabExists, LabNotFound
from lab.gates.call import Call
from lab.gates.forked import gated
from lab.gates.supervisor import Answer, Decide
from lab.loaders.command import LoaderCommand
from lab.node import marks, registry
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.proof.belongings import Belongings, freed_by, interfaces_here
from lab.proof.cases import NOT_REACHED, Case, Faults, Trigger, cases_of
from lab.proof.sweep import SweepResult
from lab.system.forkpool import WorkerDied, fork_map
from lab.system.scratch import scratch
from lab.watch.checks.hooks import check_hooks
from lab.watch.checks.pins import check_orphans, check_pins
from lab.watch.checks.routes import check_routes
from lab.watch.snapshot import take
from lab.watch.violation import Violation

POLICY = [{"name": "one", "endpoint": "pod-1", "ingress": [{"fromEntities": ["world"]}]}]
ADDED = "one-more"


@dataclass(frozen=True, slots=True)
class Agents:
    """Makes agents, all with templates that are compiled once, and with one loader; None: our own pipeline.

    `attach` is how programs are attached. Files below the directories `gated` are calls as well.
    """

    templates: Path
    loader: LoaderCommand | None = None
    gated: Sequence[Path] = ()
    attach: Attachment = Attachment.TC

    def of(self, node: Node) -> Agent:
        """Return an agent of a node."""
        return Agent(node, templates=self.templates, loader=self.loader, attach=self.attach)


@dataclass(frozen=True, slots=True)
class Stage:
    """Something that is done to a lab; `lives`: to one that is up. `arguments` are those with which a command does it.

    `do` gets the lab's spec, what makes its agent, and an event that cancels it.
    """

    name: str
    do: Callable[[NodeSpec, Agents, threading.Event], object]
    lives: bool = True
    arguments: tuple[str, ...] = ()


def _up(spec: NodeSpec, agents: Agents, cancel: threading.Event) -> None:
    node = Node.up(spec)
    try:
        with agents.of(node) as agent:
            agent.start(workers=2, cancel=cancel)
    except BaseException:
        node.down(force=True)
        raise


def _down(spec: NodeSpec, agents: Agents, cancel: threading.Event) -> None:
    registry.remove(spec.name)


def _policy(spec: NodeSpec, agents: Agents, cancel: threading.Event) -> None:
    with agents.of(Node.open(spec.name)) as agent:
        agent.apply_policies(POLICY, cancel=cancel)


def _add(spec: NodeSpec, agents: Agents, cancel: threading.Event) -> None:
    with agents.of(Node.open(spec.name)) as agent:
        if ADDED not in (pod.name for pod in agent.node.pods):
            agent.add_pod(ADDED)
        else:  # it was made, but perhaps not loaded
            agent.reload(ADDED, cancel=cancel)
            agent.sync(cancel=cancel)


def _remove(spec: NodeSpec, agents: Agents, cancel: threading.Event) -> None:
    with agents.of(Node.open(spec.name)) as agent:
        if "pod-1" in (pod.name for pod in agent.node.pods):
            agent.remove_pod("pod-1")


STAGES = (
    Stage("up", _up, lives=False),
    Stage("policy", _policy),
    Stage("pod-added", _add),
    Stage("pod-removed", _remove),
    Stage("down", _down),
)


class NoSuchStage(WrongCall):
    """A stage that there is not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no stage {name} in the life of a node; there are {', '.join(each.name for each in STAGES)}")
        self.name = name


def stages(names: Sequence[str], arguments: Sequence[str]) -> list[Stage]:
    """Return the stages of these names, all without a name. `arguments` are those that make the lab's node."""
    known = {stage.name: stage for stage in STAGES}
    for name in names:
        if name not in known:
            raise NoSuchStage(name)
    return [replace(known[name], arguments=("--life", name, *arguments)) for name in names or known]


class Life:
    """Runs cases on labs of one name, each on one of its own."""

    def __init__(self, spec: NodeSpec, agents: Agents, cancel: threading.Event) -> None:
        self._spec = spec
        self._agents = agents
        self._cancel = cancel
        self._before = interfaces_here()
        self._had = Belongings()
        self._gone: list[tuple[Case, Belongings]] = []

    @property
    def is_cancelled(self) -> bool:
        return self._cancel.is_set()

    def calls(self, stage: Stage) -> list[Call]:
        """Return the calls of a stage, once everything is compiled."""
        found: list[Call] = []
        if not stage.lives and not any(self._agents.templates.iterdir()):
            with self._lab(stage):
                stage.do(self._spec, self._agents, self._cancel)
        with self._lab(stage):
            self._gated(stage, found.append)
        return found

    def run(self, stage: Stage, case: Case) -> None:
        """Run a case, and note what came of it."""
        case.start_ns = time.monotonic_ns()
        try:
            with self._lab(stage):
                self._run(stage, case)
        except (ReloadlabError, OSError) as error:
            if self._cancel.is_set():
                raise
            what = "its lab cannot be removed" if case.ended else "it could not begin"
            case.ended = case.ended or NOT_REACHED
            case.wrong.append(f"{what}: {error}")
        case.wrong += [*self._left(), *self._had.at_once(self._before)]
        self._gone.append((case, self._had))

    def conclude(self) -> None:
        """Note with each case what the kernel has not freed of its lab, which takes it some time."""
        # One time for all of them, whose labs are gone: many may have left something.
        deadline = freed_by()
        for case, had in self._gone:
            case.wrong += had.in_the_end(deadline, self._cancel)
        if self.is_cancelled:
            raise Cancelled("cancelled before all was seen to be freed")

    def _run(self, stage: Stage, case: Case) -> None:
        trigger = Trigger(case)
        try:
            self._gated(stage, trigger.decide)
            case.ended = "succeeded"
        except (ReloadlabError, OSError) as error:
            if self._cancel.is_set():
                raise
            if isinstance(error, ReloadlabError) and case.has_killed(error):
                case.ended = "killed"
            else:
                case.ended = "cancelled" if isinstance(error, Cancelled) else f"failed: {error}"
                if isinstance(error, WorkerDied):
                    case.wrong.append(str(error))
        if not trigger.reached:
            case.ended = NOT_REACHED
        try:
            case.wrong += self._again(stage)
        except (ReloadlabError, OSError) as error:
            if self._cancel.is_set():
                raise
            case.wrong.append(f"the next one failed: {error}")

    def _gated(self, stage: Stage, decide: Decide) -> None:
        def unless_cancelled(call: Call) -> Answer:
            return None if self._cancel.is_set() else decide(call)

        directories = [registry.run_directory(), *self._agents.gated]
        pins = registry.lab_root(self._spec.name) / registry.BPFFS / "tc" / "globals"
        with gated(unless_cancelled, directories=directories, pins=pins, look_ups=False) as enter:

            @contextmanager
            def worker(cancelled: threading.Event) -> Iterator[Callable[[None], object]]:
                enter()
                yield lambda _: stage.do(self._spec, self._agents, cancelled)

            (result,) = fork_map(worker, [None], workers=1, cancel=self._cancel)
        if self._cancel.is_set():
            raise Cancelled(f"cancelled during {stage.name}")
        if isinstance(result, ReloadlabError):
            raise result

    def _again(self, stage: Stage) -> list[str]:
        """Do it as a user does who tries once more; return what does not hold of the node then."""
        try:
            stage.do(self._spec, self._agents, self._cancel)
        except LabNotFound:
            if stage.name != "down":
                raise
        except LabExists:
            # It says how to remove it.
            registry.remove(self._spec.name)
            stage.do(self._spec, self._agents, self._cancel)
        if stage.name == "down":
            return []
        node = Node.open(self._spec.name)
        with self._agents.of(node) as agent:
            now = take(node)
            checks = (check_hooks, check_pins, check_orphans, check_routes)
            return [str(violation) for check in checks for violation in check(agent, now)]

    @contextmanager
    def _lab(self, stage: Stage) -> Iterator[None]:
        """Have a lab that is up if the stage needs one, and none at the end, whatever has become of it."""
        # What a former case has left was told with that one.
        _, failure = registry.remove_each([self._spec.name], force=True, ignoring=(LabNotFound,))
        if failure is not None:
            raise failure
        self._had = Belongings()
        if stage.lives:
            _up(self._spec, self._agents, self._cancel)
        try:
            self._had |= Belongings.of(self._spec.name)
            yield
        finally:
            self._had |= Belongings.of(self._spec.name)
            _, failure = registry.remove_each([self._spec.name], force=True, ignoring=(LabNotFound,))
            if failure is not None:
                raise failure

    def _left(self) -> Iterator[str]:
        root = registry.lab_root(self._spec.name)
        if os.path.lexists(root) or marks.read(root) is not None:
            yield f"{root} is left over"
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        yield from (f"mount {line.split()[4]} is left over" for line in mounts if f"{root}" in line.split()[4])


def sweep_life(
    spec: NodeSpec,
    stages: Sequence[Stage],
    *,
    faults: Faults,
    loader: LoaderCommand | None = None,
    gated: Sequence[Path] = (),
    attach: Attachment = Attachment.TC,
    choose: Callable[[Sequence[Case]], Sequence[Case]] = lambda cases: cases,
    on_case: Callable[[Case], object] = lambda case: None,
    cancel: threading.Event | None = None,
) -> SweepResult:
    """Run the cases of stages on labs of this spec; `choose` picks them, `on_case` hears of each at its end.

    `loader` loads the programs; None: our own pipeline. Files below the directories `gated` are calls as well. `attach`
    is how programs are attached.
    """
    started, done, possible, failed = time.monotonic(), list[Case](), 0, list[Violation]()
    # A process asks once, and those that it forks know it.
    bpf.has_lookup_batch()
    with scratch() as templates:
        life = Life(spec, Agents(templates, loader, gated, attach), cancel or threading.Event())
        for stage in stages:
            try:
                cases = cases_of(stage, life.calls(stage), faults)
            except (ReloadlabError, OSError) as error:
                # Without a case it is what the call asks for that cannot be done.
                if not done or life.is_cancelled:
                    raise
                failed.append(Violation(8, f"{stage.name} failed without a fault: {error}"))
                continue
            possible += len(cases)
            for case in choose(cases):
                life.run(stage, case)
                done.append(case)
                on_case(case)
        life.conclude()
    return SweepResult(done, failed, [], time.monotonic() - started, possible)

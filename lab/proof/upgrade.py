"""Labs go to other programs or another loader, and back: packets meet what every system call of it has left.

As in the field, an agent ends, another one starts with the new release, brings the maps in line with what is declared,
and reloads all that it finds on the node. It can be killed on its way; then another agent goes on, or goes back.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from bpf import is_ours
from datapath.endpoint import Attachment
from datapath.errors import Cancelled, ReloadlabError, WrongCall
from datapath.reload.outcome import FailedReload
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.agent.agent import Agent, Change
from lab.agent.gated import under_gates
from lab.agent.options import Options, open_agent
from lab.gates.call import Call
from lab.gates.supervisor import NAMES, Answer, Kill
from lab.loaders.protocol import LoaderDied, LoaderFailed
from lab.node.node import Node
from lab.proof.action import RATE
from lab.proof.prove import Prover
from lab.proof.result import Proof
from lab.scenario.standing import StandingScenario, all_nodes
from lab.system.forkpool import WorkerDied
from lab.watch.snapshot import take
from lab.watch.violation import Violation

KILLED = frozenset({"left by a reload that did not end", "a reload died between two attaches"})
"""What reloads say of what a killed one has left."""


class NeverReached(ReloadlabError):
    """A step or call at which an upgrade was to be killed, and that did not come."""

    def __init__(self, at: str, nth: int) -> None:
        times = "" if nth == 1 else f" {nth} times"
        super().__init__(f"the upgrade has no step or call like {at}{times}; `reloadlab prove` and `plan` print them")
        self.at = at


class NoSuchPlace(WrongCall):
    """A place that is neither a step nor a call."""

    def __init__(self, at: str, known: Sequence[str]) -> None:
        near = get_close_matches(at, known, 1) or get_close_matches(at.partition(" ")[0], known, 1)
        like = f"is it {near[0]}? " if near else ""
        super().__init__(f"there is no step or call like {at}: {like}`reloadlab plan` and `prove` print them")
        self.at = at


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What is done with the labs: to what each goes, by its name, and how.

    `back`: they go back afterwards. `pods_first`: what belongs to the node is reloaded after the endpoints. `at`: the
    agent, or the process of its loader, is killed before the `nth` step of that name, or call that fits; then the
    upgrade is begun anew, or, with `back`, undone. `change` breaks the plans of every new agent; without `creates_maps`
    it makes no map before its reloads do. Without `fresh` there is no traffic by new connections.
    """

    to: Mapping[str, Options]
    back: bool = False
    pods_first: bool = False
    at: str = ""
    nth: int = 1
    change: Change | None = None
    creates_maps: bool = True
    fresh: bool = True


@dataclass
class _Killer:
    """Kills the process that makes the nth call that fits, or, as an observer, this one before the nth step.

    `reached` is known of calls alone: of a step knows the process that is killed before it.
    """

    at: str
    nth: int
    is_step: bool
    seen: int = 0
    reached: bool = field(default=False, init=False)

    def decide(self, call: Call) -> Answer:
        if not self.is_step and not self.reached and call.fits(self.at) and self._count():
            return Kill()
        return None

    def before(self, step: Step, work: Workspace) -> None:
        if step.name == self.at and self._count():
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, step: Step, work: Workspace) -> None:
        """Go on."""

    def has_killed(self, error: ReloadlabError) -> bool:
        """Tell whether this comes of what was killed here: the agent, its loader, or a process that this has started.

        What died of something else is not meant, and the loader itself tells of a process of its own.
        """
        if self.is_step:
            return isinstance(error, WorkerDied) and error.killed
        died = isinstance(error, WorkerDied | LoaderDied) and error.killed
        return self.reached and (died or isinstance(error, LoaderFailed))

    def _count(self) -> bool:
        self.seen += 1
        self.reached = self.seen == self.nth
        return self.reached


class Upgrader:
    """Does an upgrade on labs under watch."""

    def __init__(self, scenario: StandingScenario, upgrade: Upgrade, cancel: threading.Event | None) -> None:
        self._scenario = scenario
        self._upgrade = upgrade
        self._cancel = cancel
        self.prover = Prover(scenario)
        self.failed: list[Violation] = []

    def go(self) -> None:
        """Take one lab after the other to its release, and all back if that is wanted; what fails is noted."""
        former = self._scenario.options
        for name, options in self._upgrade.to.items():
            self._one(name, options, former[name])
        for name in reversed(list(self._upgrade.to)) if self._upgrade.back else ():
            if self._scenario.options[name] != former[name]:
                self._attempt(f"{name} back", name, former[name], round=2)

    def _one(self, name: str, options: Options, former: Options) -> None:
        what, at = f"{name} to {title(options)}", self._upgrade.at
        if not at:
            self._attempt(what, name, options, round=1)
            return
        self._attempt(f"{what}, killed at {at}", name, options, round=1, dies=True)
        self._scenario.expect(warnings=KILLED)
        if self._upgrade.back:
            self._attempt(f"{name} rolled back", name, former, round=1)
        else:
            self._attempt(f"{what}, begun anew", name, options, round=1)

    def _attempt(self, what: str, name: str, options: Options, round: int, *, dies: bool = False) -> None:
        """Go there, or be killed on the way; what fails is noted, and a place of death that has not come."""
        at, killer = self._upgrade.at, None
        self.prover.begin(what, round)
        try:
            agent = self._scenario.succeed(name, options)
            agent.change, agent.creates_maps = self._upgrade.change, self._upgrade.creates_maps
            if dies:
                killer = _Killer(at, self._upgrade.nth, is_step=at in _step_names(agent))
            self._restore(agent, killer)
            if killer is not None and not killer.reached:
                raise NeverReached(at, self._upgrade.nth)
        except Cancelled:
            raise
        except ReloadlabError as error:
            if killer is None or not killer.has_killed(error):
                self.failed.append(Violation(8, f"{what} failed: {error}", (time.monotonic_ns(),)))
        self.prover.end()

    def _restore(self, agent: Agent, killer: _Killer | None) -> None:
        """Do what an agent does that starts, in a process of its own, with the loader that it starts.

        Of what was killed, or died, and does not tell what it has replaced, the pins do.
        """
        last = agent.node_subjects if self._upgrade.pods_first else ()
        pins, done = _ids(agent), len(self._scenario.outcomes)

        def do(cancelled: threading.Event) -> None:
            if killer is not None:
                agent.on_reload = lambda plan: killer
                _end_at_failure(agent, cancelled)
            agent.restore(last=last, cancel=cancelled)

        def decide(call: Call) -> Answer:
            if self._cancel is not None and self._cancel.is_set():
                return None
            self.prover.decide(call)
            return None if killer is None else killer.decide(call)

        replaced: set[str] = set()
        try:
            under_gates(agent, do, decide, cancel=self._cancel, look_ups=False, forked=True)
        except ReloadlabError as error:
            if isinstance(error, WorkerDied | LoaderDied) or (killer is not None and killer.has_killed(error)):
                now = _ids(agent)
                replaced |= {name for name, ident in pins.items() if now.get(name, ident) != ident}
            raise
        finally:
            replaced |= {name for outcome in self._scenario.outcomes[done:] for name in outcome.migrated}
            self._scenario.expect_upgraded(agent, replaced)
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(f"cancelled during the upgrade of {agent.node.name}")
        if killer is None:
            self._scenario.options[agent.node.name].keep(agent.node)


def title(options: Options) -> str:
    """Return what a release is called: by its sources, its macros, its loader unless that is ours, and tcx or auto."""
    sources = "our own C" if options.library is None else options.library
    macros = "".join(f" -D {name}={value}" for name, value in options.defines)
    loader = "" if options.loader is None else f", {options.loader.name}"
    return f"{sources}{macros}{loader}" + ("" if options.attach is Attachment.TC else f", attached by {options.attach}")


def run(nodes: Sequence[Node], upgrade: Upgrade, *, cancel: threading.Event | None = None) -> Proof:
    """Upgrade labs that are up, one or some of a cluster, under the traffic of all its nodes. Cancelled by `cancel`.

    Each lab keeps the options with which all of it was loaded last. NoSuchPlace if a place is named that there is not.
    """
    watched = all_nodes(nodes)
    for node in nodes:
        _check_place(node, upgrade)
    foreign = any(options.library is not None and not is_ours(Path(options.library)) for options in upgrade.to.values())
    with StandingScenario(watched, rate=RATE, fresh=upgrade.fresh, foreign=foreign, cancel=cancel) as scenario:
        upgrader = Upgrader(scenario, upgrade, cancel)
        upgrader.go()
        return upgrader.prover.conclude(upgrader.failed)


def _check_place(node: Node, upgrade: Upgrade) -> None:
    """Raise NoSuchPlace for what is neither a step of the upgrade nor such as calls are called."""
    at = upgrade.at
    if not at or any(fnmatchcase(name, at.partition(" ")[0]) for name in NAMES):
        return
    with open_agent(node, upgrade.to[node.name]) as agent:
        steps = _step_names(agent)
    if at not in steps:
        raise NoSuchPlace(at, [*steps, *NAMES])


def _end_at_failure(agent: Agent, cancelled: threading.Event) -> None:
    """Have the agent end when a reload fails: one whose loader has died would go on with another process."""
    told = agent.on_failure

    def end(failed: FailedReload) -> None:
        cancelled.set()
        if told is not None:
            told(failed)

    agent.on_failure = end


def _ids(agent: Agent) -> dict[str, int]:
    return {name: pinned.id for name, pinned in take(agent.node).pins.items()}


def _step_names(agent: Agent) -> set[str]:
    return {step.name for subject in agent.subjects for step in agent.plan(subject).steps}

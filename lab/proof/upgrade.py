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

from datapath.errors import Cancelled, ReloadlabError
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.agent.agent import Agent, Change
from lab.agent.gated import under_gates
from lab.agent.options import Options
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Decide, Kill
from lab.loaders.protocol import LoaderDied
from lab.node.node import Node
from lab.proof.action import RATE
from lab.proof.prove import Prover
from lab.proof.result import Proof, place
from lab.scenario.standing import StandingScenario, all_nodes
from lab.scenario.verdict import InvariantsViolated, NoVerdict
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


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What is done with the labs: to what each goes, by its name, and how.

    `back`: they go back afterwards. `pods_first`: what belongs to the node is reloaded after the endpoints. `at`: the
    agent, or the process of its loader, is killed before the `nth` step of that name, or call that fits; then the
    upgrade is begun anew, or, with `back`, undone. `change` breaks the plans of every new agent. Without `fresh` there
    is no traffic by new connections.
    """

    to: Mapping[str, Options]
    back: bool = False
    pods_first: bool = False
    at: str = ""
    nth: int = 1
    change: Change | None = None
    fresh: bool = True


@dataclass
class _Killer:
    """Kills the process that makes the nth call that fits, or, as an observer, this one before the nth step."""

    at: str
    nth: int
    seen: int = 0
    reached: bool = field(default=False, init=False)

    def decide(self, call: Call) -> Answer:
        if not self.reached and call.fits(self.at) and self._count():
            return Kill()
        return None

    def before(self, step: Step, work: Workspace) -> None:
        if step.name == self.at and self._count():
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, step: Step, work: Workspace) -> None:
        """Go on."""

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
        """Take one lab after the other to its release, and all back if that is wanted."""
        former = self._scenario.options
        for name, options in self._upgrade.to.items():
            self._one(name, options, former[name])
        for name in reversed(list(self._upgrade.to)) if self._upgrade.back else ():
            if self._scenario.options[name] != former[name]:
                self._attempt(f"{name} back", name, former[name], round=2)

    def _one(self, name: str, options: Options, former: Options) -> None:
        what = f"{name} to {title(options)}"
        if not self._upgrade.at:
            self._attempt(what, name, options, round=1)
            return
        self._killed(what, name, options)
        self._scenario.expect(warnings=KILLED)
        if self._upgrade.back:
            self._attempt(f"{name} rolled back", name, former, round=1)
        else:
            self._attempt(f"{what}, begun anew", name, options, round=1)

    def _attempt(self, what: str, name: str, options: Options, round: int) -> None:
        """Go there; what fails is noted."""
        agent = self._succeed(name, options)
        self.prover.begin(what, round)
        try:
            self._restore(agent, self.prover.decide)
        except Cancelled:
            raise
        except ReloadlabError as error:
            self.failed.append(Violation(8, f"{what} failed: {error}", (time.monotonic_ns(),)))
        self.prover.end()

    def _killed(self, what: str, name: str, options: Options) -> None:
        """Go there, and be killed on the way. NeverReached if there is no such place."""
        agent = self._succeed(name, options)
        killer = _Killer(self._upgrade.at, self._upgrade.nth)
        at_step = self._upgrade.at in _step_names(agent)
        if at_step and agent.external is not None:
            agent.refuse(f"the step {self._upgrade.at}, at which our own pipeline alone can be killed")

        def decide(call: Call) -> Answer:
            self.prover.decide(call)
            return None if at_step else killer.decide(call)

        self.prover.begin(f"{what}, killed at {self._upgrade.at}", 1)
        try:
            self._restore(agent, decide, killer if at_step else None)
        except WorkerDied:
            self.prover.end()
        except LoaderDied as error:
            if not error.killed:
                raise
            self.prover.end()
        else:
            raise NeverReached(self._upgrade.at, self._upgrade.nth)

    def _succeed(self, name: str, options: Options) -> Agent:
        agent = self._scenario.succeed(name, options)
        agent.change = self._upgrade.change
        return agent

    def _restore(self, agent: Agent, decide: Decide, killer: _Killer | None = None) -> None:
        """Do what an agent does that starts, in a process of its own, or in that of its loader."""
        last = agent.node_subjects if self._upgrade.pods_first else ()
        # A killed process tells nothing of what it has replaced. What is in there is compared all the same.
        before = _ids(agent)

        def do(cancelled: threading.Event) -> None:
            if killer is not None:
                agent.on_reload = lambda plan: killer
            agent.restore(last=last, cancel=cancelled)

        def unless_cancelled(call: Call) -> Answer:
            return None if self._cancel is not None and self._cancel.is_set() else decide(call)

        try:
            under_gates(agent, do, unless_cancelled, cancel=self._cancel, look_ups=False)
        finally:
            now = _ids(agent)
            replaced = [name for name, ident in before.items() if now.get(name, ident) != ident]
            self._scenario.expect_upgraded(agent, replaced)
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(f"cancelled during the upgrade of {agent.node.name}")
        self._scenario.options[agent.node.name].keep(agent.node)


def title(options: Options) -> str:
    """Return what a release is called: by its sources, its macros, and its loader unless that is ours."""
    sources = "our own C" if options.library is None else options.library
    macros = "".join(f" -D {name}={value}" for name, value in options.defines)
    return f"{sources}{macros}" + ("" if options.loader is None else f", {options.loader.name}")


def run(nodes: Sequence[Node], upgrade: Upgrade, *, cancel: threading.Event | None = None) -> Proof:
    """Upgrade labs that are up, under the traffic of all nodes of their clusters. Cancelled by `cancel`.

    Each lab keeps the options with which all of it was loaded last.
    """
    watched = all_nodes(nodes)
    foreign = any(options.library is not None for options in upgrade.to.values())
    with StandingScenario(watched, rate=RATE, fresh=upgrade.fresh, foreign=foreign) as scenario:
        upgrader = Upgrader(scenario, upgrade, cancel)
        upgrader.go()
        try:
            scenario.finish()
        except InvariantsViolated:
            pass  # they are the findings
        except NoVerdict as error:
            # Each call was stopped until the packets were answered, or the time for it was over.
            scenario.leave_out(str(error))
        scenario.abandon()
    findings = place([*upgrader.failed, *scenario.findings], upgrader.prover.calls)
    return Proof(upgrader.prover.calls, findings, scenario.sent, scenario.lost, scenario.gaps)


def _ids(agent: Agent) -> dict[str, int]:
    return {name: pinned.id for name, pinned in take(agent.node).pins.items()}


def _step_names(agent: Agent) -> set[str]:
    return {step.name for subject in agent.subjects for step in agent.plan(subject).steps}

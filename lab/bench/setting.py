"""What `bench reload` measures, and the nodes and agents that it needs for it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from datapath.build.template import Template
from datapath.endpoint import Attachment
from datapath.reload.plans import OVERLAY_SUBJECT
from lab.agent.agent import Agent
from lab.bench.held import HeldArrays
from lab.bench.objects import plan_with_object
from lab.loaders.command import LoaderCommand
from lab.node.node import Node
from lab.node.topology import HOST, NodeSpec


class Subject(StrEnum):
    """What is reloaded: a pod, the host with its devices, or the overlay."""

    POD = "pod"
    HOST = HOST
    OVERLAY = OVERLAY_SUBJECT

    def of(self, node: Node, number: int = 0) -> str:
        """Return what an agent calls it; of the pods that with this number, from 0."""
        return node.pods[number].name if self is Subject.POD else self.value


@dataclass(frozen=True, slots=True)
class ReloadOptions:
    """What to measure: our own programs, those of `library`, or those of `object`, an object file for a pod.

    `devices` are native devices that the host has programs on. `loaders` reload the same (None: the built-in one).
    `pods` are those of the many reloads, which are measured of pods only, with so many `workers` at a time.
    `verifiers` are the threads that verify the programs of one reload, where it is not one thread.
    """

    subject: Subject = Subject.POD
    devices: tuple[str, ...] = ()
    library: Path | None = None
    defines: tuple[tuple[str, str], ...] = ()
    object: Path | None = None
    loaders: tuple[LoaderCommand | None, ...] = ()
    endpoint_routes: bool = True
    rounds: int = 20
    pods: int = 20
    workers: tuple[int, ...] = (1, 2, 4)
    verifiers: int = 2
    attach: Attachment = Attachment.TC


@dataclass(frozen=True, slots=True)
class Setting:
    """Makes nodes and agents, which go when `stack` closes. `given` is the template of ReloadOptions.object.

    `held` holds what their reloads replace, when it is asked to.
    """

    stack: ExitStack
    options: ReloadOptions
    given: Template | None = None
    held: HeldArrays = field(default_factory=HeldArrays)

    def node(self, name: str, pods: int = 1) -> Node:
        """Return a new node that has the subject."""
        options = self.options
        spec = NodeSpec(
            f"bench-{name}",
            pods=pods,
            endpoint_routes=options.endpoint_routes,
            devices=options.devices,
            tunnel=options.subject is Subject.OVERLAY,
        )
        return self.stack.enter_context(Node(spec))

    def agent(
        self,
        node: Node,
        *,
        verifiers: int | None = 1,
        all_programs: bool = False,
        loader: LoaderCommand | None = None,
    ) -> Agent:
        """Return a new agent of a node."""
        agent = Agent(
            node,
            library=self.options.library,
            defines=self.options.defines,
            verifiers=verifiers,
            loader=loader,
            attach=self.options.attach,
            all_programs=all_programs,
        )
        given = self.given
        if given is not None:
            agent.change = lambda plan: plan_with_object(given, plan)
        if agent.config.globals not in self.held.directories:
            self.held.directories.append(agent.config.globals)
        return self.stack.enter_context(agent)

    def template(self, agent: Agent) -> Template:
        """Return the template of the subject's objects."""
        if self.given is not None:
            return self.given
        templates = agent.loader.templates
        if self.options.subject is Subject.OVERLAY:
            return templates.fetch_overlay()
        return templates.fetch(agent.endpoint(self.options.subject.of(agent.node)))

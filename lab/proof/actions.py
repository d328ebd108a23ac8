"""What can be proved: reloads of endpoints, of another build as well, and switches of the node's mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from datapath.endpoint import Attachment
from datapath.errors import WrongCall
from datapath.kernel.tcx import chosen
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from lab.loaders.command import BUILTIN, LoaderCommand
from lab.node.topology import HEALTH, HOST, NodeSpec
from lab.proof.action import BACK, THERE, Action
from lab.scenario.scenario import Scenario

Switch = Callable[[Scenario, threading.Event], object]

LOST = "lost"
"""The pod that a node loses while no agent runs."""

WORKERS = 2
"""Endpoints that are reloaded at a time by a switch of the node."""

_OPTIONS = {OVERLAY_SUBJECT: "--tunnel", XDP_SUBJECT: "--xdp MODE"}
"""The options that give a node what not every node has."""


class NoSuchSubject(WrongCall):
    """Something to reload that the node to be built will not have."""

    def __init__(self, name: str, existing: Sequence[str]) -> None:
        more = "; --pods N gives it more pods" if name.startswith("pod-") else ""
        there = f"there are {', '.join(existing)}{more}"
        remedy = f"it takes {_OPTIONS[name]}" if name in _OPTIONS else there
        super().__init__(f"no subject {name}: {remedy}")
        self.name = name
        self.existing = tuple(existing)


def reloads(spec: NodeSpec, subjects: Sequence[str], macros: Sequence[tuple[str, str]]) -> list[Action]:
    """Return a reload of each subject, or of one of each kind; with macros, one with them and one without again."""
    pods = tuple(pod.name for pod in spec.pod_specs)
    own = _node_subjects(spec)
    for name in subjects:
        if name not in (known := (*own, HEALTH, *pods)):
            raise NoSuchSubject(name, known)
    chosen = subjects or (*pods[:1], HEALTH, *own)
    return [action for subject in chosen for action in _reloads(subject, dict(macros))]


def _node_subjects(spec: NodeSpec) -> tuple[str, ...]:
    overlay = (OVERLAY_SUBJECT,) if spec.tunnel else ()
    return (HOST, *overlay, XDP_SUBJECT) if spec.xdp is not None else (HOST, *overlay)


def _reloads(subject: str, macros: dict[str, str]) -> Iterator[Action]:
    if not macros:
        yield Action(
            f"reload of {subject}",
            lambda scenario, cancel: scenario.agent.reload(subject, cancel=cancel),
            arguments=(subject,),
            subjects=(subject,),
        )
        return
    given = [f"{name}={value}" for name, value in macros.items()]
    arguments = (subject, *(word for macro in given for word in ("--with", macro)))
    there, back = partial(_rebuild, subject, macros), partial(_rebuild, subject, {})
    subjects = (subject,)
    name = f"reload of {subject} with {' '.join(given)}"
    yield Action(name, there, back, arguments=arguments, subjects=subjects, way=THERE)
    yield Action(f"reload of {subject} as before", back, there, arguments=arguments, subjects=subjects, way=BACK)


def _rebuild(subject: str, macros: dict[str, str], scenario: Scenario, cancel: threading.Event) -> None:
    scenario.define(**macros)
    scenario.agent.reload(subject, cancel=cancel)


def reattaches(spec: NodeSpec, subjects: Sequence[str], attach: Attachment) -> list[Action]:
    """Return, for each subject or one of each kind, the reload that attaches it the other way, and the one back.

    XDP programs change their mode.
    """
    other = Attachment.TC if chosen(attach) is Attachment.TCX else Attachment.TCX
    names = [each.arguments[0] for each in reloads(spec, subjects, ())]
    return [
        action
        for name in names
        for action in (_xdp_modes(spec) if name == XDP_SUBJECT else _reattaches(name, attach, other))
    ]


def _xdp_modes(spec: NodeSpec) -> Iterator[Action]:
    there = _configured(XDP_SUBJECT, xdp="native" if spec.xdp == "generic" else "generic")
    back = _configured(XDP_SUBJECT, xdp=spec.xdp_mode)
    warnings = frozenset({"had no XDP program for a moment"})
    arguments, subjects = (XDP_SUBJECT, "--reattach"), (XDP_SUBJECT,)
    ways = (("the other mode", THERE, there, back), (f"{spec.xdp}", BACK, back, there))
    for name, way, (do, told), (before, _) in ways:
        yield Action(
            f"xdp to {name}",
            do,
            before,
            # The kernel has one mode at a time: the old program is detached by now.
            empties="LINK_CREATE XDP *",
            arguments=arguments,
            warnings=warnings,
            subjects=subjects,
            way=way,
            told=told,
        )


def _configured(subject: str, **changes: Any) -> tuple[Switch, Callable[[Scenario], object]]:
    """Return what reloads a subject with another configuration of the agent, and what sets that alone."""

    def told(scenario: Scenario) -> None:
        scenario.agent.configure(**changes)

    def do(scenario: Scenario, cancel: threading.Event) -> None:
        told(scenario)
        scenario.agent.reload(subject, cancel=cancel)

    return do, told


def _reattaches(subject: str, attach: Attachment, other: Attachment) -> Iterator[Action]:
    there, back = _configured(subject, attach=other), _configured(subject, attach=chosen(attach))
    arguments, subjects = (subject, "--reattach"), (subject,)
    for to, way, (do, told), (before, _) in ((other, THERE, there, back), (attach, BACK, back, there)):
        yield Action(f"{subject} to {to}", do, before, arguments=arguments, subjects=subjects, way=way, told=told)


def switches(spec: NodeSpec) -> list[Action]:
    """Return the switch of the node to the other routing mode, and the one back."""
    there, back = partial(_switch, not spec.endpoint_routes), partial(_switch, spec.endpoint_routes)
    return [
        _switched(not spec.endpoint_routes, there, back, THERE),
        _switched(spec.endpoint_routes, back, there, BACK),
    ]


def _switched(on: bool, do: Switch, before: Switch, way: str) -> Action:
    name = f"endpoint routes {'on' if on else 'off'}"
    return Action(name, do, before, other_path=True, whole=False, arguments=("--switch",), way=way)


def _switch(on: bool, scenario: Scenario, cancel: threading.Event) -> None:
    # The process of another loader is the one that is stopped: workers would have processes of their own.
    workers = WORKERS if scenario.agent.external is None else 1
    scenario.agent.set_endpoint_routes(on, workers=workers, cancel=cancel)


def restores(spec: NodeSpec) -> list[Action]:
    """Return a restore of a node that has lost a pod while no agent ran."""

    def lose(scenario: Scenario, cancel: threading.Event) -> None:
        names = [pod.name for pod in scenario.node.pods]
        if LOST not in names:
            scenario.agent.add_pod(LOST)
        scenario.node.remove_pod(LOST)

    def do(scenario: Scenario, cancel: threading.Event) -> None:
        scenario.agent.restore(cancel=cancel)

    return [Action("restore", do, lose, whole=False, arguments=("--restore",))]


def loaded_by(action: Action, loader: LoaderCommand | None) -> Action:
    """Return the action done by another loader than the node's, in a process of its own; None: our own pipeline.

    Only for what is done by a copy of the agent in a forked process.
    """

    def do(scenario: Scenario, cancel: threading.Event) -> object:
        with scenario.agent.loading_with(loader):
            return action.do(scenario, cancel)

    return replace(action, name=f"{action.name} by {BUILTIN if loader is None else loader.name}", do=do)


def pairs(spec: NodeSpec, subjects: Sequence[str], macros: Sequence[tuple[str, str]]) -> list[tuple[Action, Action]]:
    """Return two reloads at once: of two subjects, of one twice, or of a pod with each kind and with itself."""
    if not subjects:
        pods = [pod.name for pod in spec.pod_specs]
        others = (*pods[1:2], *_node_subjects(spec), pods[0])
        return [pair for other in others for pair in pairs(spec, (pods[0], other), macros)]
    first, second = (reloads(spec, [subject], macros) for subject in (*subjects, *subjects)[:2])
    return list(zip(first, second, strict=True))

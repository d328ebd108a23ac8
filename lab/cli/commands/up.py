"""`reloadlab up`: build a node that stays, or several, with their programs loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from datapath.errors import ReloadlabError
from lab.agent.options import Options, check_library, open_agent
from lab.cli.datapath import add_datapath_options, check_attach, require_compiler, tell_not_supported, wanted_options
from lab.cli.networks import add_network_options, network_options
from lab.cli.targets import DEFAULT_LAB, BadOption, number, print_json
from lab.doctor.doctor import require
from lab.system.signals import cancel_on_signals
from lab.system.words import plural

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.node.node import Node
    from lab.node.topology import NodeSpec, PodSpec

DEFAULT_PODS = 2
WORKERS = 2
"""Endpoints that are loaded at a time: the first of each kind compiles, the others wait for it."""


class NotLoaded(ReloadlabError):
    """The node came up, but its programs could not be loaded."""

    def __init__(self, error: ReloadlabError, name: str, *, kept: bool) -> None:
        fate = f"is there without them: reloadlab down {name}" if kept else "is gone again (--keep would keep it)"
        super().__init__(f"{error}; lab {name} {fate}")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "up",
        description="Build a node in network namespaces and load the programs of all its endpoints, so that its pods "
        "can talk. It stays until `reloadlab down`.",
    )
    parser.add_argument("lab", nargs="?", metavar="LAB", help=f"name of the lab (default {DEFAULT_LAB})")
    # The form of former versions.
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=number, default=1, metavar="N", help="nodes LAB-1, LAB-2, ... on one underlay")
    parser.add_argument(
        "--pod",
        dest="named",
        type=pod,
        action="append",
        default=[],
        metavar="NAME[:KEY=VALUE,...]",
        help="a pod of this name, with labels: --pod web:app=web,tier=front; may be repeated",
    )
    parser.add_argument(
        "--pods",
        type=number,
        metavar="N",
        help=f"N pods called pod-1, pod-2, ... (default {DEFAULT_PODS}, with --pod none)",
    )
    parser.add_argument("--mtu", type=number, default=1500, metavar="BYTES", help="MTU of all devices (default 1500)")
    add_network_options(parser)
    parser.add_argument("--no-programs", action="store_true", help="leave the node bare: interfaces and routes only")
    parser.add_argument("--keep", action="store_true", help="keep the node if its programs cannot be loaded")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per node")
    add_datapath_options(parser, new=True)
    parser.set_defaults(run=run)


def pod(text: str) -> PodSpec:
    """Return the pod of NAME or NAME:KEY=VALUE,KEY=VALUE."""
    from lab.node.topology import PodSpec

    name, _, labels = text.partition(":")
    found = frozenset(labels.split(",")) if labels else frozenset()
    for label in found:
        key, equals, _ = label.partition("=")
        if not key or not equals:
            raise argparse.ArgumentTypeError(f"{label!r} of {text} is not a label: KEY=VALUE, such as app=web")
    try:
        return PodSpec(name, labels=found)
    except ReloadlabError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    """Build the nodes, load their programs and say how to go on."""
    if args.lab and args.name:
        raise BadOption(f"two names for one lab: {args.lab} and {args.name}")
    name = args.lab or args.name or DEFAULT_LAB
    specs = _specs(name, args)
    check_library(args.library)
    options = wanted_options(Options(), args)
    require("root", *(["bridge"] if len(specs) > 1 else []))
    check_attach(args.attach)
    if not args.no_programs:
        require_compiler(args.clang)
    from lab.node import registry

    for spec in specs:
        registry.check_name(spec.name, spec.cluster)
    with _standing(specs, name, keep=args.keep) as nodes:
        for node in nodes:
            options.keep(node)
        programs = [0] * len(nodes) if args.no_programs else _load(nodes, options, args.verifiers)
    if args.json:
        print_json([_document(node, count) for node, count in zip(nodes, programs, strict=True)])
        return 0
    for node, count in zip(nodes, programs, strict=True):
        _announce(node, count)
    print("next:")
    for command in _commands(nodes, name, bare=args.no_programs):
        print(f"  reloadlab {command}")
    return 0


def _specs(name: str, args: argparse.Namespace) -> tuple[NodeSpec, ...]:
    from lab.agent.cluster import cluster_specs
    from lab.node.topology import NodeSpec, PodSpec, check_pod_count

    anonymous = args.pods if args.pods is not None else 0 if args.named else DEFAULT_PODS
    check_pod_count(anonymous)
    options: dict[str, Any] = {
        "pods": (*args.named, *(PodSpec(f"pod-{at}") for at in range(1, anonymous + 1))) if args.named else anonymous,
        "mtu": args.mtu,
        **network_options(args),
    }
    if args.nodes == 1:
        return (NodeSpec(name, **options),)
    return cluster_specs(name, args.nodes, **options)


@contextmanager
def _standing(specs: Sequence[NodeSpec], name: str, *, keep: bool) -> Iterator[list[Node]]:
    """Build nodes that stay if the block succeeds, or in any case if they are to be kept."""
    from lab.agent.cluster import build

    nodes = build(specs)
    with ExitStack() as stack:
        if not keep:
            for node in nodes:
                stack.callback(node.down, force=True)
        try:
            yield nodes
        except ReloadlabError as error:
            raise NotLoaded(error, name, kept=keep) from error
        stack.pop_all()


def _load(nodes: Sequence[Node], options: Options, verifiers: int | None) -> list[int]:
    """Reload everything for the first time; return the number of programs that are attached on each node.

    The maps of all nodes are there before the first program is: it may send to any of the others at once.
    """
    programs = []
    with cancel_on_signals() as cancel:
        for node in nodes[1:]:
            with open_agent(node, options, verifiers=verifiers) as agent:
                agent.sync(cancel=cancel)
        # One agent at a time: its workers are forked, and inherit nothing of the other nodes.
        for node in nodes:
            with open_agent(node, options, verifiers=verifiers) as agent:
                outcomes = agent.start(workers=WORKERS, cancel=cancel)
                tell_not_supported(agent)
            programs.append(sum(len(outcome.attached) for outcome in outcomes))
    return programs


def _document(node: Node, programs: int) -> dict[str, Any]:
    from lab.node.facts import pod_json

    spec = node.spec
    return {
        "lab": node.name,
        "cluster": spec.cluster or None,
        "programs": programs,
        "router": [str(spec.router4), str(spec.router6)],
        "outside": [str(spec.outside4.ip), str(spec.outside6.ip)],
        "pods": [pod_json(pod) for pod in node.pods],
    }


def _announce(node: Node, programs: int) -> None:
    name, spec, pods = node.name, node.spec, [pod.name for pod in node.pods]
    attached = f"{programs} programs attached" if programs else "no programs yet"
    print(f"{name} is up: {plural(len(pods), 'pod')}, {attached}")
    width = max(len(pod) for pod in ("outside", *pods[:4]))
    print(f"  {'router':<{width}}  {spec.router4}  {spec.router6}")
    print(f"  {'outside':<{width}}  {spec.outside4.ip}  {spec.outside6.ip}")
    for pod in node.pods[:4]:
        print(f"  {pod.name:<{width}}  {pod.ipv4}  {pod.ipv6}  {' '.join(sorted(pod.labels))}".rstrip())
    if len(pods) > 4:
        print(f"  ... and {len(pods) - 4} more, to {pods[-1]}")


def _commands(nodes: Sequence[Node], name: str, *, bare: bool) -> Iterator[str]:
    first, last = nodes[0], nodes[-1]
    yield f"show {first.name}"
    if not bare and first.pods and last.pods:
        alone = first is last and len(first.pods) == 1
        target = first.spec.outside4.ip if alone else last.pods[-1].ipv4
        yield f"exec {first.name}/{first.pods[0].name} -- ping -c 3 {target}"
    yield f"reload {name}"
    yield f"down {name}"

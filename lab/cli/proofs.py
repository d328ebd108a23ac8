"""The arguments of `reloadlab prove` and `reloadlab faults`: what is done, and on which node."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from datapath.endpoint import Attachment
from lab.cli.datapath import define
from lab.cli.networks import PODS, add_node_options
from lab.cli.targets import BadOption
from lab.loaders.command import given_loader

if TYPE_CHECKING:
    from rich.console import Console

    from lab.node.topology import NodeSpec
    from lab.proof.action import Action

T = TypeVar("T")


class Judged(Protocol):
    """A case or a meeting, and what was wrong with it, of which more may be known later."""

    @property
    def wrong(self) -> Sequence[object]: ...


J = TypeVar("J", bound=Judged)

UNDECIDED = 3
"""The exit code if nothing was found, but nothing could have been seen."""


class Verdict(Protocol):
    """What came of a proof or a sweep."""

    @property
    def failed(self) -> bool: ...

    @property
    def undecided(self) -> str: ...


def exit_code(verdict: Verdict) -> int:
    """Return what a command ends with."""
    return 1 if verdict.failed else UNDECIDED if verdict.undecided else 0


def teller(console: Console, line: Callable[[J], str]) -> Callable[[J], None]:
    """Return what prints a line for each of those with which something was wrong, and another when more is known."""
    told: dict[int, int] = {}

    def tell(found: J) -> None:
        if told.get(id(found), 0) != len(found.wrong):
            told[id(found)] = len(found.wrong)
            console.print(f"  {line(found)}", markup=False, highlight=False, soft_wrap=True)

    return tell


def add_action_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is done, and the node that it is done on."""
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="what is reloaded: pod-1, host, ... (each kind)")
    parser.add_argument("--switch", action="store_true", help="switch endpoint routes, and back, instead of reloads")
    parser.add_argument(
        "--reattach", action="store_true", help="attach SUBJECTs by tcx instead of tc (xdp: in another mode), and back"
    )
    parser.add_argument(
        "--restore", action="store_true", help="restore the node, of which a pod is gone, instead of reloads"
    )
    parser.add_argument(
        "--with",
        dest="changed",
        type=define,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a macro that only these reloads are built with; may be repeated",
    )
    parser.add_argument(
        "--way",
        choices=("there", "back"),
        help="of --switch, --reattach and --with: only the way there, or only that back",
    )
    parser.add_argument(
        "--gated",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="files below DIR count as well, not only those of the node; may be repeated",
    )
    add_node_options(parser)


def check_actions(args: argparse.Namespace) -> None:
    """Raise BadOption for what does not go together."""
    for option, what in (("switch", "switches"), ("restore", "restores")):
        if vars(args)[option] and (args.subjects or args.changed):
            raise BadOption(f"--{option} {what} the whole node: without a SUBJECT and without --with")
    if args.switch and args.restore:
        raise BadOption("--switch and --restore are two things: one at a time")
    if args.reattach and (args.switch or args.restore or args.changed):
        raise BadOption("--reattach is what these reloads do: without --switch, --restore and --with")
    if args.way is not None and not (args.switch or args.reattach or args.changed):
        raise BadOption("--way is of what goes there and back: with --switch, --reattach or --with")


def actions_of(args: argparse.Namespace, spec: NodeSpec) -> list[Action]:
    """Return what the options ask for, each with the arguments that ask for it alone."""
    from lab.proof.actions import reattaches, reloads, restores, switches

    if args.restore:
        actions = restores(spec)
    elif args.reattach:
        actions = reattaches(spec, args.subjects, args.attach or Attachment.TC)
    else:
        actions = switches(spec) if args.switch else reloads(spec, args.subjects, args.changed)
    node = node_arguments(args)
    return [
        replace(action, arguments=(*action.arguments, *(("--way", action.way) if action.way else ()), *node))
        for action in actions
        if args.way in (None, action.way)
    ]


def attachment(args: argparse.Namespace) -> Attachment:
    """Return how programs are attached; tcx if they are attached both ways, which needs it."""
    return Attachment.TCX if args.reattach else args.attach or Attachment.TC


def scenario_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the options say of the programs of the node, and of their loader: options of a Scenario."""
    return {
        "library": args.library,
        "defines": tuple(args.defines),
        "loader": given_loader(args.loader),
        "attach": args.attach or Attachment.TC,
        "gated": tuple(directory.resolve() for directory in args.gated),
    }


def spread(items: Sequence[T], number: int | None) -> Sequence[T]:
    """Return so many of the items, spread evenly; None: all."""
    if number is None or number >= len(items):
        return items
    return [items[at * len(items) // number] for at in range(number)]


def node_arguments(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the arguments that make such a node again."""
    found = [] if args.pods == PODS else ["--pods", str(args.pods)]
    found += [option for option in ("--endpoint-routes", "--tunnel") if vars(args)[option[2:].replace("-", "_")]]
    found += ["--devices", args.devices] if args.devices else []
    found += ["--xdp", args.xdp] if args.xdp is not None else []
    found += ["--loader", args.loader] if args.loader is not None else []
    found += ["--attach", args.attach] if args.attach is not None else []
    found += ["--library", str(args.library)] if args.library is not None else []
    found += [word for directory in args.gated for word in ("--gated", str(directory))]
    return (*found, *(word for name, value in args.defines for word in ("-D", f"{name}={value}")))

"""`reloadlab watch`: a node as it runs: programs and their loads, packets and drops a second, reloads."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from lab.cli.targets import BadOption, add_targets, check_targets, find_targets, make_console, seconds
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable, Sequence

    from lab.cli.watch_view import Picture
    from lab.watch.live import Looker

INTERVAL = 1.0
_SHORTEST = 0.05


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "watch",
        description="Show a node as it runs, until Ctrl-C: its interfaces, the programs at their hooks with the "
        "number of the load, packets and drops a second, reloads as they happen. Nothing is locked or written.",
    )
    add_targets(parser, endpoints=False, help="a lab, or a cluster: all its nodes")
    parser.add_argument("--once", action="store_true", help="show one picture and end")
    parser.add_argument(
        "--interval",
        type=partial(seconds, least=_SHORTEST, most=86400),
        metavar="S",
        help=f"seconds between two looks ({INTERVAL:g})",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object per look and node, a line each")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look at the nodes again and again, and show what was seen."""
    if args.once and args.interval is not None:
        raise BadOption("--interval is the time between two looks: --once is one")
    check_targets([args.target], endpoints=False)
    require("root")
    targets = find_targets([args.target])
    from lab.cli.watch_view import Picture
    from lab.watch.live import Looker

    nodes = [(Looker(target.node), Picture()) for target in targets]
    interval = INTERVAL if args.interval is None else args.interval
    with _shown(as_json=args.json, once=args.once) as show:
        due = time.monotonic()
        while True:
            _look(nodes)
            show([picture for _, picture in nodes])
            if args.once:
                return 0
            due = max(due + interval, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0))


def _look(nodes: Sequence[tuple[Looker, Picture]]) -> None:
    for looker, picture in nodes:
        picture.take(looker.look())


@contextmanager
def _shown(*, as_json: bool, once: bool) -> Iterator[Callable[[Sequence[Picture]], None]]:
    """Yield what shows pictures: as lines of JSON, in place on a terminal, or one below the other."""
    from rich.console import Group
    from rich.live import Live

    console = make_console()
    if as_json:
        yield _print_json
    elif once or not console.is_terminal or console.is_dumb_terminal:
        yield _print
    else:
        # The last picture stays when the command ends.
        with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:

            def draw(pictures: Sequence[Picture]) -> None:
                live.update(Group(*(picture.drawn(console.width) for picture in pictures)), refresh=True)

            yield draw


def _print_json(pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        print(json.dumps(picture.to_json()), flush=True)


def _print(pictures: Sequence[Picture]) -> None:
    from lab.cli.tables import print_table

    for picture in pictures:
        print("\n".join(picture.lines()))
        print_table(picture.table())
        print(flush=True)

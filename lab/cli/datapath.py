"""The arguments that say which programs are loaded and how, as several commands declare them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.endpoint import Attachment
from lab.agent.options import BadMacro, Options, parse_macro
from lab.cli.targets import count
from lab.system.cache import keep_nothing

if TYPE_CHECKING:
    from lab.agent.agent import Agent


def add_datapath_options(parser: argparse.ArgumentParser, *, new: bool = False) -> None:
    """Declare which programs are loaded and how; a `new` lab keeps none yet."""
    kept = (
        "The lab keeps the options with which all of it was last loaded, but for --no-cache and --verifiers. "
        "Options given here replace them."
    )
    group = parser.add_argument_group("datapath", None if new else kept)
    add_source_options(group)
    add_loader_option(group)
    add_attach_option(group)
    group.add_argument("--clang", metavar="PATH", help="the compiler (clang-16, clang, or the newest clang-NN)")
    group.add_argument("--filter-priority", type=priority, metavar="N", help="priority of the tc filters (1)")
    group.add_argument(
        "--verifiers", type=count, metavar="N", help="threads that load the programs of one object (all CPUs)"
    )
    group.add_argument(
        "--all-programs",
        action=argparse.BooleanOptionalAction,
        help="load also the programs of an object that nothing reaches, such as those of a hook where none is attached",
    )
    parser.set_defaults(defaults=False)
    if not new:
        group.add_argument("--defaults", action="store_true", help="forget the options that the lab keeps")


def add_source_options(group: argparse._ActionsContainer) -> None:
    """Declare which C is compiled."""
    group.add_argument("--library", type=Path, metavar="DIR", help="C sources instead of our own, e.g. Cilium's bpf/")
    add_define_option(group)
    group.add_argument(
        "--no-cache", action=_NoCache, nargs=0, help="compile what was compiled before, for whatever lab, and keep none"
    )


class _NoCache(argparse.Action):
    """For this command and all processes that it starts."""

    def __call__(self, *_: object) -> None:
        keep_nothing()


def add_loader_option(group: argparse._ActionsContainer) -> None:
    """Declare who loads the programs."""
    group.add_argument(
        "--loader",
        metavar="NAME|COMMAND",
        help="what loads the programs: builtin, tc, a name of [tool.reloadlab.loaders] in pyproject.toml, or a command",
    )


def add_attach_option(group: argparse._ActionsContainer) -> None:
    """Declare how programs are attached."""
    group.add_argument(
        "--attach",
        type=attachment,
        choices=list(Attachment),
        metavar="tc|tcx|auto",
        help="attach programs as filters of clsact (tc), by pinned tcx links (tcx, Linux 6.6), or by tcx where the "
        "kernel has it (auto)",
    )


def check_attach(attach: Attachment | None) -> None:
    """Raise TcxMissing if tcx is demanded of a kernel without it, before anything is built; needs root."""
    from datapath.kernel.tcx import chosen

    if attach is not None:
        chosen(attach)


def tell_not_supported(agent: Agent) -> None:
    """Say what the loader of an agent does not do, and what was done instead, with counts."""
    if agent.external is not None:
        for what, number in sorted(agent.not_supported.items()):
            times = "once" if number == 1 else f"{number} times"
            said = f"not supported by loader {agent.external.name}: {what} ({times})"
            print(f"reloadlab: {agent.node.name}: {said}", file=sys.stderr)


def add_define_option(group: argparse._ActionsContainer) -> None:
    """Declare the macros for the C."""
    group.add_argument(
        "-D",
        dest="defines",
        type=define,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a macro for the C; may be repeated",
    )


def wanted_options(kept: Options, args: argparse.Namespace) -> Options:
    """Return the options that a lab keeps, with those of the command line in their place."""
    base = Options() if args.defaults else kept
    return base.replaced(
        library=args.library,
        defines=tuple(args.defines),
        clang=args.clang,
        filter_priority=args.filter_priority,
        loader=args.loader,
        attach=args.attach,
        all_programs=args.all_programs,
    )


def define(text: str) -> tuple[str, str]:
    """Return (name, value) of NAME or NAME=VALUE, as a compiler's -D takes it."""
    try:
        return parse_macro(text)
    except BadMacro as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def attachment(text: str) -> Attachment:
    """Return how programs are attached."""
    try:
        return Attachment(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"no {text}; it is {', '.join(Attachment)}") from None


def priority(text: str) -> int:
    """Return the priority of a filter, which has 16 bits in the kernel."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 65535")
    return int(text)


def require_compiler(clang: str | None) -> None:
    """Raise what `require` raises for clang, or ToolMissing for the one that is named."""
    from datapath.build.compile import find_clang
    from lab.doctor.doctor import require

    if clang is None:
        require("clang")
    else:
        find_clang(clang)

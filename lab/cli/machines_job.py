"""`reloadlab run --on`: the scenarios spread over machines, and one result of all."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape

from datapath.base.statefile import WrongContent
from lab.cli.ci import CiFiles
from lab.cli.job import about, call_of, check, conclude, paged, run_scenarios, write_trace
from lab.cli.report import RunFile
from lab.cli.targets import BadOption, make_console, told
from lab.loaders.command import BUILTIN, TC
from lab.machines.identity import Identity
from lab.machines.place import LOST, Place, Spread
from lab.machines.session import MachinesUnfit, Order, Session, prepare, sessions
from lab.machines.ssh import MachineUnfit, route_to
from lab.machines.target import Target, check_different, parse_target
from lab.machines.tree import Tree, environment_key, our_tree, project_of, tree_of
from lab.results.machine import Machine
from lab.system.output import BadDirectory, OutputDirectory
from lab.system.scratch import scratch
from lab.system.words import plural

if TYPE_CHECKING:
    from rich.console import Console

_STDERR = 2
_MISSING, _OFF, _OK = "missing", "off", "ok"
"""What a doctor says of a requirement."""


def do_on_machines(args: argparse.Namespace) -> int:
    """Run the scenarios on the machines that the options name, and return the exit code."""
    targets = _checked(args)
    check(args)
    with CiFiles(args.junitxml, args.summary) as files:
        return _do(args, targets, files)


def _checked(args: argparse.Namespace) -> list[Target]:
    """Return the machines; BadOption or BadTarget for a call that cannot be meant."""
    if not args.on:
        raise BadOption("--reschedule is for scenarios on other machines: name them with --on")
    targets = [parse_target(text) for text in args.on]
    check_different(targets)
    if args.kernels:
        raise BadOption(
            "--on takes machines with the kernels that they have, --kernel boots others here: use one of them"
        )
    if args.rounds:
        raise BadOption("--rounds measures time, which is never spread: call reloadlab run on one of the machines")
    if args.workers != "auto":
        raise BadOption("--workers is for this machine: say how many for each, as in --on ssh:HOST,workers=2")
    if args.keep:
        raise BadOption("--keep has no use with --on, which leaves nothing on other machines: call reloadlab run there")
    if args.loader not in (None, BUILTIN, TC):
        raise BadOption(f"--loader {args.loader} is a command of this machine: with --on there are {BUILTIN} and {TC}")
    for word in args.handed_on:
        # Not Path.exists, which raises for a word that is too long for a name.
        if os.path.exists(word):
            raise BadOption(f"{word} is a file of this machine: with --on, options of pytest may name none")
    return targets


def _do(args: argparse.Namespace, targets: Sequence[Target], files: CiFiles) -> int:
    console = make_console(stderr=args.json)
    with (
        OutputDirectory(args.out) as output,
        paged(output, RunFile(output, about(args))) as file,
        scratch() as directory,
    ):
        files.run = file
        packets = Packets(args.pcap)
        console.print("[bold]machines[/]")
        copied = _Files.of(args)
        wanted = [(target, route_to(target, directory), copied.order(args, file.before)) for target in targets]
        with sessions(wanted, directory, warn=_warn, packets=packets.write) as found:
            prepare(found, lambda label, text: console.print(f"  {label}: {text}", markup=False, soft_wrap=True))
            _examine(console, args, found)
            if len(found) == 1:
                file.measured_on(_facts(found[0]))
            file.machines = [_described(session) for session in found]
            spread = Spread(tuple(_place(session, args.pcap) for session in found), args.reschedule)
            (directory / "machines").write_text(spread.to_json())
            call = replace(call_of(args, file), pcap=None, machines=directory / "machines")

            def beat() -> None:
                for session in found:
                    session.beat()

            try:
                records = run_scenarios(console, call, file, stdout=_STDERR if args.json else None, meanwhile=beat)
            finally:
                _tell_lost(console, file, directory / LOST)
        file.write(records, complete=True)
        write_trace(args, output, file)
    code = conclude(console, args, file, records)
    return max(code, 1) if packets.lost else code


@dataclass(frozen=True, slots=True)
class _Files:
    """What goes along: the project, the user's suites with their paths in `tree`, other C sources."""

    ours: Tree
    tree: Tree
    paths: tuple[str, ...]
    library: Tree | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        ours = our_tree()
        tree, paths = _suites(args.paths, ours) if args.paths else (ours, [])
        library = None if args.library is None else tree_of(args.library.resolve())
        return cls(ours, tree, tuple(paths), library)

    def order(self, args: argparse.Namespace, failed: Sequence[str]) -> Order:
        """Return what a machine is asked for, with a token that no other machine has; `failed` is for --lf."""
        trees = dict.fromkeys(tree for tree in (self.ours, self.tree, self.library) if tree is not None)
        order = Order(environment_key(self.ours.root), tuple(trees), secrets.token_hex(6), failed=tuple(failed))
        place = order.place(self.tree)
        arguments = ["-o", f"cache_dir={order.directory}/cache", "--rootdir", place]
        if args.pcap is not None:
            arguments += ["--reloadlab-pcap", order.packets]
        if self.library is not None:
            arguments += ["--reloadlab-library", order.place(self.library)]
        if self.paths:
            arguments += [f"{place}/{path}" for path in self.paths]
        else:
            arguments += ["-c", f"{place}/scenarios/suite.ini", f"{place}/scenarios"]
        return replace(order, arguments=tuple(arguments))


def _suites(given: Sequence[Path], ours: Tree) -> tuple[Tree, list[str]]:
    """Return the tree that goes along for suites of the user's, and what names them in it."""
    split = [str(path).partition("::") for path in given]
    files = [Path(name).resolve() for name, _, _ in split]
    roots = dict.fromkeys(project_of(file) for file in files)
    if len(roots) > 1:
        raise BadOption(f"these suites are of {len(roots)} projects ({', '.join(map(str, roots))}): run one at a time")
    (root,) = roots
    tree = ours if root == ours.root else tree_of(root)
    names = [file.relative_to(root).as_posix() for file in files]
    for file, name in zip(files, names, strict=True):
        if file.is_file() and name not in tree.files:
            raise BadOption(f"{file} does not go along: neither hidden files nor links are copied")
    return tree, [f"{name}{colons}{test}" for name, (_, colons, test) in zip(names, split, strict=True)]


def _examine(console: Console, args: argparse.Namespace, found: Sequence[Session]) -> None:
    """Print a line for each machine; MachinesUnfit if one lacks what the lab needs, or is another one's twin."""
    unfit: list[MachineUnfit] = []
    known: dict[Identity, str] = {}
    for session in found:
        assert session.ready is not None
        session_lines = session.ready.lines(_MISSING)
        unfit += [
            MachineUnfit(session.label, f"it lacks {line.removeprefix(_MISSING).strip()}") for line in session_lines
        ]
        twin = known.setdefault(session.ready.identity, session.label)
        if twin != session.label:
            unfit.append(MachineUnfit(session.label, f"it is the same machine as {twin}: name it once, with workers=N"))
        if args.attach == "tcx" and "tcx" not in session.ready.names(_OK):
            unfit.append(MachineUnfit(session.label, "it has no tcx, which --attach tcx asks for"))
        console.print(f"  {session.label}: {_summary(session)}", markup=False, soft_wrap=True)
    if unfit:
        raise MachinesUnfit(unfit)


def _summary(session: Session) -> str:
    ready = session.ready
    assert ready is not None
    total, met = len(ready.requirements), len(ready.names(_OK))
    off = ready.names(_OFF)
    slow = ready.slowness
    return ", ".join(
        [
            f"Linux {ready.identity.kernel}",
            plural(ready.cpus, "CPU"),
            plural(session.workers, "worker"),
            f"{met} of {total} requirements are there" + (f" (off: {', '.join(off)})" if off else ""),
            *([f"{slow:g} times slower"] if slow > 1 else []),
        ]
    )


def _facts(session: Session) -> Machine:
    assert session.ready is not None
    return session.ready.machine


def _described(session: Session) -> dict[str, Any]:
    """Return what run.json says of a machine; `lost` is filled in when it is."""
    ready = session.ready
    assert ready is not None
    return {
        "name": session.label,
        "host": ready.identity.host,
        "kernel": ready.identity.kernel,
        "cpus": ready.cpus,
        "workers": session.workers,
        "slowness": ready.slowness,
        "requirements": ready.lines(_OFF, "unknown"),
        "facts": asdict(ready.machine),
        "lost": None,
    }


def _place(session: Session, pcap: Path | None) -> Place:
    assert session.ready is not None
    # pytest names files as they are seen from the directory of the workers.
    order = session.order
    names = [(f"{os.path.relpath(order.place(tree), order.work)}/", "") for tree in order.trees]
    if pcap is not None:
        # The files are copied here at the end.
        names.append((order.packets, str(_packets_of(pcap, session.label))))
    return Place(session.label, session.spec(), session.workers, session.ready.identity.to_json(), tuple(names))


def _tell_lost(console: Console, file: RunFile, path: Path) -> None:
    """Print which machines were lost, and keep it in run.json."""
    try:
        lost: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        # pytest did not come to begin, and says so.
        return
    file.machines = [machine | {"lost": lost.get(machine["name"])} for machine in file.machines]
    for label, reason in lost.items():
        console.print(f"\n[bold red]lost[/] {escape(label)}: {escape(reason)}", soft_wrap=True)


class Packets:
    """Writes the packets that machines send; `lost` are the names of files that could not be written."""

    def __init__(self, pcap: Path | None) -> None:
        self._pcap = pcap
        self.lost: list[str] = []

    def write(self, label: str, name: str, content: bytes) -> None:
        """Write a file of a machine's; WrongContent says why that is not possible."""
        if self._pcap is None:
            raise WrongContent("it sends packets that were not asked for")
        try:
            with OutputDirectory(_packets_of(self._pcap, label)) as output:
                output.write(name, content, mode=0o600)
        except (OSError, BadDirectory) as error:
            # The run is over: nothing else is to be lost.
            self.lost.append(name)
            raise WrongContent(f"{name} is lost: {told(error)}") from error


def _packets_of(pcap: Path, label: str) -> Path:
    return pcap.absolute() / label.replace(":", "-")


def _warn(line: str) -> None:
    print(f"reloadlab: warning: {line}", file=sys.stderr)

"""`reloadlab vm`: kernels for virtual machines, and commands in them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.errors import ReloadlabError
from lab.cli.targets import BadOption, print_json
from lab.cli.vm_options import KERNELS_HELP, add_machine_options, found, kernel_list, machine_of, printer

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Sequence

    from lab.vm.survey import Survey

MODES = ("plain", "endpoint-routes", "tunnel", "xdp", "tcx", "netkit", "netkit-l2")
"""Of a survey: those of lab.vm.survey, which is not imported for a help text."""

RELEASES = ("bookworm", "trixie")
"""Of a box: those of lab.box.plan, the default first."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and those below it."""
    parser = subparsers.add_parser(
        "vm",
        description="Run commands on other kernels: in a virtual machine that boots the kernel directly and has this "
        "machine's files, read-only. What a command writes there is gone when it ends. See also run --kernel. "
        "Machines that last are Vagrant's: `box` builds what it starts them from.",
    )
    commands = parser.add_subparsers(dest="vm_command", metavar="COMMAND", required=True, help="what to do")

    fetch = commands.add_parser(
        "fetch",
        help="fetch kernels from the distribution's packages",
        description="Download and unpack kernels of the distribution, without installing them. Needs Debian.",
    )
    fetch.add_argument("versions", nargs="+", metavar="VERSION", help="such as 6.12 (its newest release), or newest")
    fetch.add_argument("--json", action="store_true", help="print a JSON list of releases")
    fetch.set_defaults(run=_fetch)

    listing = commands.add_parser("ls", help="list the kernels that were fetched", description="List fetched kernels.")
    listing.add_argument("--json", action="store_true", help="print a JSON list of releases")
    listing.set_defaults(run=_list)

    execute = commands.add_parser(
        "exec",
        usage="reloadlab vm exec KERNEL [--cpus N] [--silence SECONDS] -- COMMAND ...",
        help="run a command on another kernel",
        description="Run a command as root in this directory, on another kernel. The exit code is the command's.",
    )
    execute.add_argument("kernel", metavar="KERNEL", help=KERNELS_HELP)
    add_machine_options(execute)
    execute.set_defaults(run=_exec)

    survey = commands.add_parser(
        "survey",
        help="say what works on which kernel",
        description="On each kernel: what doctor says, what the verifier says to each object, and whether a node comes "
        "up, reloads and answers pings in each mode.",
    )
    survey.add_argument("kernels", type=kernel_list, metavar="KERNEL[,KERNEL...]", help=KERNELS_HELP)
    survey.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help=f"bring up a node like this alone (each of {', '.join(MODES)}, where the kernel has it)",
    )
    survey.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="keep what was found in this file, kernel by kernel; what it has of other kernels and modes stays, and is "
        "printed",
    )
    survey.add_argument("--markdown", action="store_true", help="print tables for a document (docs/kernels.md)")
    survey.add_argument("--json", action="store_true", help="print one JSON object, and the progress on stderr")
    add_machine_options(survey)
    survey.set_defaults(run=_survey)

    box = commands.add_parser(
        "box",
        help="build a box for Vagrant",
        description="Build a box for Vagrant and libvirt from Debian's packages: one kernel, and all that `make setup` "
        "asks for. One that is there and has the same content is kept. Needs root, and about 8 GB meanwhile.",
    )
    box.add_argument(
        "kernel",
        metavar="KERNEL",
        help="a version such as 6.12, or newest (fetched if it is not there), or the path of an image",
    )
    box.add_argument(
        "--release", choices=RELEASES, default=RELEASES[0], help="the release of Debian in the box (%(default)s)"
    )
    box.add_argument(
        "--lock",
        type=Path,
        default=Path("requirements.lock"),
        metavar="FILE",
        help="what pip is to find in the box (%(default)s)",
    )
    box.add_argument("--json", action="store_true", help="print one JSON object: name, path, kernel, built")
    box.set_defaults(run=_box)

    down = commands.add_parser(
        "down",
        help="end virtual machines",
        description="End what runs in virtual machines of ours: those of `vm` and `run --kernel`, whoever started "
        "them, and those of Vagrant from this checkout, whose disks are deleted. Machines of others are named.",
    )
    down.add_argument("--all", action="store_true", required=True, help="say that all of them are meant")
    down.add_argument("--json", action="store_true", help="print what was ended and what was left as JSON")
    down.set_defaults(run=_down)


def _fetch(args: argparse.Namespace) -> int:
    from lab.doctor.doctor import require
    from lab.vm.fetch import fetch

    require("root")
    releases = fetch(args.versions)
    if args.json:
        print_json(releases)
    else:
        print(*releases, sep="\n")
    return 0


def _list(args: argparse.Namespace) -> int:
    from lab.vm.kernels import fetched

    releases = [kernel.release for kernel in fetched()]
    if args.json:
        print_json(releases)
    else:
        print(*releases, sep="\n", end="\n" if releases else "")
    return 0


def _exec(args: argparse.Namespace) -> int:
    from lab.doctor.doctor import require
    from lab.vm.session import run_in

    if not args.handed_on:
        raise BadOption(f"give a command after --: reloadlab vm exec {args.kernel} -- uname -r")
    require("root")
    (kernel,) = found([args.kernel])
    cpus, silence = machine_of(args)
    return run_in(kernel, args.handed_on, cpus=cpus, silence=silence, say=printer("")).exit_code


def _box(args: argparse.Namespace) -> int:
    from lab.box.build import build, check
    from lab.box.plan import RELEASES
    from lab.doctor.doctor import require
    from lab.vm.fetch import fetch
    from lab.vm.kernels import NEWEST, fetched, find, matching

    require("root")
    say = printer("box", stderr=True)
    if "/" not in args.kernel:
        there = [kernel.release for kernel in fetched()]
        if args.kernel == NEWEST or not matching(args.kernel, there):
            check(args.lock)
            say(f"fetching kernel {args.kernel}")
            fetch([args.kernel])
    box = build(RELEASES[args.release], find(args.kernel), args.lock, say=say)
    if args.json:
        print_json({"name": box.name, "path": str(box.path), "kernel": box.kernel, "built": box.built})
    else:
        print(f"{box.name} ({box.kernel}) {'is built' if box.built else 'is there already'}: {box.path}")
    return 0


def _down(args: argparse.Namespace) -> int:
    from lab.box.vagrant import destroy, domains, machines
    from lab.doctor.doctor import require
    from lab.system.launch import ROOT
    from lab.vm.running import end, running

    require("root")
    ended: list[str] = []
    try:
        for machine in running():
            if machine.ours:
                end(machine)
                ended.append(f"{machine.guest} (PID {machine.pid})")
        names = [machine.name for machine in machines(Path(ROOT))]
        if names:
            destroy(Path(ROOT), names)
            ended += (f"{name} (Vagrant)" for name in names)
    finally:
        # What has ended has ended, also if the next one does not.
        left = sorted({*domains(), *(machine.guest for machine in running() if not machine.ours)})
        if args.json:
            print_json({"ended": ended, "left": left})
        else:
            for name in ended:
                print(f"ended: {name}")
            for name in left:
                print(f"left alone: {name}, which is not of this checkout")
    return 0


def _survey(args: argparse.Namespace) -> int:
    from lab.cli.survey_file import kept_in
    from lab.doctor.doctor import require
    from lab.vm.session import check_bootable
    from lab.vm.survey import merged, survey

    require("root")
    kernels = found(args.kernels)
    for kernel in kernels:
        # What one of them lacks is told before any of them boots.
        check_bootable(kernel)
    cpus, silence = machine_of(args)
    good = True
    surveys: list[Survey] = []
    with kept_in(args.out, surveys) as keep:
        try:
            for kernel in kernels:
                say = printer(kernel.label, stderr=True)
                made = survey(kernel, args.mode or MODES, cpus=cpus, silence=silence, say=say)
                surveys[:] = merged(surveys, made)
                good = good and made.good
                keep()
        except (KeyboardInterrupt, ReloadlabError, OSError):
            # What was found of the kernels before took its time.
            _print_surveys(args, surveys)
            raise
    _print_surveys(args, surveys)
    return 0 if good else 1


def _print_surveys(args: argparse.Namespace, surveys: Sequence[Survey]) -> None:
    from lab.cli.survey_view import markdown, print_survey

    if args.json:
        print_json([each.to_json() for each in surveys])
    elif args.markdown:
        print(markdown(surveys))
    elif surveys:
        print_survey(surveys)

"""`reloadlab bench`: measurements, each against something that does the same work."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.endpoint import Attachment
from lab.agent.options import check_library
from lab.cli.compare_options import NOT_COMPARABLE, add_side, add_threshold, chosen_side, percentage
from lab.cli.datapath import add_attach_option, add_define_option, add_source_options, check_attach
from lab.cli.targets import BadOption, count, file_path, whole_number
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.results.recording import Recording
    from lab.results.result import Course

TOPOLOGY_PODS = (10, 100, 250)
MANY_PODS = 20
SUBJECTS = ("pod", "host", "overlay")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and the measurements there are."""
    parser = subparsers.add_parser(
        "bench",
        description="Measure, in turns with another way of doing the same. Figures are printed, none is a verdict.",
    )
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT", help="what is measured")
    _add_topology(benches)
    _add_reload(benches)
    _add_traffic(benches)
    _add_gates(benches)
    _add_ab(benches)
    _add_releases(benches)
    _add_export(benches)
    # A further measurement is one more `_add_...` here, with a function that runs it.


def _add_topology(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "topology",
        help="a node up and down, next to a script of `ip netns` and `ip -batch`",
        description="Time for a node to come up and to go down, next to a shell script that makes the same one.",
    )
    parser.add_argument(
        "--pods", type=_counts, default=TOPOLOGY_PODS, metavar="N,N,...", help="pods of the nodes (10,100,250)"
    )
    _add_common(parser, rounds=5)
    parser.set_defaults(run=run_topology)


def _add_reload(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "reload",
        help="one reload and many, next to the bare system calls, to tc and to other loaders",
        description="Time of one reload of a pod, the host or the overlay, next to its floor (the bare system calls, "
        "prepared before), to tc and to other loaders doing the same work, in turns, with the programs that nothing "
        "reaches and without; the share of it that is the kernel's; and the time of many pods' reloads.",
    )
    parser.add_argument(
        "--subject", choices=SUBJECTS, default=SUBJECTS[0], help=f"what is reloaded: {', '.join(SUBJECTS)} (pod)"
    )
    parser.add_argument("--devices", default="", metavar="NAMES", help="native devices of the host, such as eth0")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--object", type=Path, metavar="FILE.o", help="this object, e.g. a bpf_lxc.o of Cilium's")
    source.add_argument("--library", type=Path, metavar="DIR", help="C sources instead of our own, e.g. Cilium's bpf/")
    add_define_option(parser)
    parser.add_argument(
        "--loader",
        dest="loaders",
        action="append",
        default=[],
        metavar="NAME|COMMAND",
        help="the same reload by this loader as well; may be repeated",
    )
    add_attach_option(parser)
    parser.add_argument("--pods", type=count, metavar="N", help=f"pods of the many reloads ({MANY_PODS})")
    parser.add_argument(
        "--endpoint-routes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="programs on both hooks of a pod, as with endpoint routes (yes), or on one",
    )
    _add_common(parser, rounds=20)
    parser.set_defaults(run=run_reload)


def _add_traffic(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "traffic",
        help="packets between pods, with the programs on their way and without",
        description="What packets between two pods cost: UDP, TCP round trips, a TCP stream; without programs and with "
        "them, in either routing mode, with many rules, between two nodes, in turns; and the programs alone. One CPU "
        "does it all. --library or -D add a second build to the same rounds, for `reloadlab compare`.",
    )
    add_source_options(parser)
    _add_common(parser, rounds=20)
    parser.set_defaults(run=run_traffic)


def _add_gates(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "gates",
        help="a system call stopped by a gate, and one under the filter that is not, next to one without a filter",
        description="What `reloadlab prove` and `faults` cost: one system call without a filter, under the filter but "
        "not stopped, and stopped and let go, each by a process of its own, in turns.",
    )
    _add_common(parser, rounds=20)
    parser.set_defaults(run=run_gates)


def _add_ab(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "ab",
        help="the reload of a pod in two ways, in lockstep: the comparison to believe",
        description="Reload a pod in two ways, A and B, in one run: in lockstep, in random order, for as many rounds "
        "as the precision needs. Each is `own`, or words of library=DIR, git=REVISION (of the C sources of --tree), "
        "define=NAME[=VALUE], loader=NAME, attach=tc|tcx and sleep=MS. Exit code: that of `reloadlab compare`.",
    )
    parser.add_argument("a", metavar="A", help="the first side, such as own or 'git=HEAD~1 define=DEBUG'")
    parser.add_argument("b", metavar="B", help="the second side, such as 'library=/src/cilium/bpf'")
    parser.add_argument("--tree", type=Path, metavar="DIR", help="the C sources whose revisions are meant (our own)")
    parser.add_argument(
        "--precision",
        type=percentage,
        default=0.01,
        metavar="PERCENT",
        help="half width of the interval of the ratio from which on to stop (1%%)",
    )
    parser.add_argument(
        "--max-time", type=count, default=600, metavar="SECONDS", help="stop after this time in any case (600)"
    )
    parser.add_argument(
        "--trials",
        type=whole_number,
        default=0,
        metavar="N",
        help="reload everything on a node of each side under traffic, N times: the worst delay, what is lost (0)",
    )
    parser.add_argument("--seed", type=whole_number, metavar="N", help="the seed of the random order (a new one)")
    parser.add_argument(
        "--endpoint-routes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="programs on both hooks of the pod, as with endpoint routes (yes), or on one",
    )
    add_threshold(parser)
    _add_output(parser)
    parser.set_defaults(run=run_ab, failure=NOT_COMPARABLE)


def _add_releases(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "releases",
        help="releases of Cilium side by side: reloads, programs, packets, delays",
        description="Measure each release that FILE names (docs/releases.md), by its own loader and by our own "
        "pipeline, in turns: the reload of a pod by phase, its programs, what packets cost, and the worst delay while "
        "all is reloaded and while the release before is upgraded to it. `reloadlab report` shows all side by side. "
        "Exit code 1 if nothing could be measured.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a TOML file with a table for each release")
    parser.add_argument(
        "--trials", type=count, default=3, metavar="N", help="reloads of everything, and upgrades, under traffic (3)"
    )
    _add_common(parser, rounds=20)
    parser.set_defaults(run=run_releases)


def _add_export(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "export",
        help="print a result (--out) in the form of another tool",
        description="Print a result of --out, or a run.json, for `python -m pyperf`, for Bencher, for "
        "github-action-benchmark, or as JSON lines, one for each value.",
    )
    forms = ["pyperf", "jsonl", "bencher", "customSmallerIsBetter", "customBiggerIsBetter"]
    parser.add_argument("form", choices=forms, metavar="FORM", help=f"the form: {', '.join(forms)}")
    parser.add_argument(
        "result", type=Path, metavar="FILE", help="a result of `reloadlab bench ... --out`, or a run.json"
    )
    add_side(parser, "that is exported")
    parser.set_defaults(run=run_export)


def _add_common(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    parser.add_argument(
        "--rounds", type=count, default=rounds, metavar="N", help=f"rounds in which all take turns ({rounds})"
    )
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=file_path, metavar="FILE", help="write the result, with every value, to FILE")
    parser.add_argument("--json", action="store_true", help="print the result instead of tables")


def run_traffic(args: argparse.Namespace) -> int:
    """Measure traffic between pods and print rates and ratios."""
    check_library(args.library)
    require("root", "clang", "ip")
    from lab.bench.pairs import Build
    from lab.bench.sides import SIDES
    from lab.bench.topology import isolate_mounts
    from lab.bench.traffic import TrafficOptions, measure_traffic
    from lab.cli.traffic_view import show
    from lab.results.recording import Recording
    from lab.results.subject import subject_of

    library = _resolved(args.library)
    other = Build("second", library, tuple(args.defines)) if library is not None or args.defines else None
    subjects = {"": subject_of()}
    if other is not None:
        subjects = dict(zip(SIDES, (subject_of(), subject_of(library=library, defines=args.defines)), strict=True))
    with Recording("traffic", options={}, subjects=subjects, out=args.out) as recording:
        isolate_mounts()
        report = measure_traffic(TrafficOptions(other, args.rounds), _progress)
        recording.save(report.series(), _course(args), others=report.others)
        return _finish(args, recording, lambda: show(report))


def run_reload(args: argparse.Namespace) -> int:
    """Measure reloads and print medians and ratios."""
    from lab.loaders.command import find_loader

    _check_reload(args)
    check_library(args.library)
    loaders = tuple(find_loader(text) for text in args.loaders)
    require("root", "clang")
    check_attach(args.attach)
    from lab.bench.reload import measure_reload
    from lab.bench.setting import ReloadOptions, Subject
    from lab.bench.topology import isolate_mounts
    from lab.cli.reload_view import show

    options = ReloadOptions(
        subject=Subject(args.subject),
        devices=tuple(name for name in args.devices.split(",") if name),
        library=_resolved(args.library),
        defines=tuple(args.defines),
        object=args.object,
        loaders=loaders,
        endpoint_routes=args.endpoint_routes,
        rounds=args.rounds,
        pods=MANY_PODS if args.pods is None else args.pods,
        verifiers=max(os.cpu_count() or 1, 2),
        attach=args.attach or Attachment.TC,
    )
    shape = {
        "subject": options.subject,
        "devices": options.devices,
        "pods": options.pods,
        "endpoint routes": options.endpoint_routes,
        "workers": options.workers,
        "verifiers": options.verifiers,
        "loaders": len(loaders),
    }
    with _recording(args, shape, _reload_subject(args, object_file=options.object)) as recording:
        isolate_mounts()
        report = measure_reload(options, _progress)
        notes = {"object": report.object, "hooks": report.hooks, "not traced": report.calls.missing}
        recording.save(report.series(), _course(args), others=report.others, notes=notes)
        return _finish(args, recording, lambda: show(report))


def _check_reload(args: argparse.Namespace) -> None:
    """Raise BadOption for options that do not go together."""
    if args.object is not None and args.loaders:
        raise BadOption("--object is not loaded by other loaders: without --loader")
    if args.object is not None and args.defines:
        raise BadOption("--object is compiled already: without -D")
    if args.devices and args.subject != "host":
        raise BadOption("--devices are the host's: with --subject host")
    if args.subject != "pod":
        for given, option in ((args.object, "--object"), (args.pods, "--pods")):
            if given is not None:
                raise BadOption(f"{option} is for reloads of pods: without --subject {args.subject}")


def run_gates(args: argparse.Namespace) -> int:
    """Measure the price of gates and print medians."""
    require("root", "notify")
    from lab.bench.gates import measure_gates
    from lab.cli.gates_view import show
    from lab.results.subject import own_code

    with _recording(args, {}, own_code()) as recording:
        report = measure_gates(args.rounds, _progress)
        recording.save(report.series(), _course(args), others=report.others)
        return _finish(args, recording, lambda: show(report))


def run_topology(args: argparse.Namespace) -> int:
    """Measure nodes of several sizes and print medians and ratios."""
    require("root", "ip")
    from lab.bench.topology import isolate_mounts, measure_topology, start_time
    from lab.cli.topology_view import show
    from lab.results.result import Course, Series
    from lab.results.subject import own_code

    with _recording(args, {}, own_code()) as recording:
        isolate_mounts()
        start = start_time()
        rows = list(measure_topology(args.pods, args.rounds, _progress))
        series = [Series("start of the interpreter", "s", (start,)), *(each for row in rows for each in row.series())]
        # The kernel still cleans up after one run during the next: the load of others says nothing here.
        recording.save(series, Course(rounds=args.rounds))
        return _finish(args, recording, lambda: show(rows, start))


def run_ab(args: argparse.Namespace) -> int:
    """Measure two sides in lockstep, and compare them."""
    from bpf import LIBRARY
    from lab.bench.sides import SIDES, checked_out, parse_side

    parsed = [parse_side(text) for text in (args.a, args.b)]
    if args.tree is not None and all(side.revision is None for side in parsed):
        raise BadOption("--tree is for revisions: with git=REVISION")
    require("root", "clang")
    for side in parsed:
        check_attach(side.attach)
    from lab.bench.ab import AbOptions, AbReport, measure_ab
    from lab.bench.topology import isolate_mounts
    from lab.cli.compare_view import exit_code, show, tell_unsaid
    from lab.results.compare import Named, compare
    from lab.results.recording import Recording

    seed = args.seed if args.seed is not None else secrets.randbelow(1 << 32)
    with ExitStack() as stack:
        first, second = (checked_out(stack, side, args.tree or LIBRARY) for side in parsed)
        options = AbOptions((first, second), args.precision, args.max_time, seed, args.endpoint_routes, args.trials)
        subjects = {name: side.subject() for name, side in zip(SIDES, options.sides, strict=True)}
        shape = {"endpoint routes": options.endpoint_routes, "trials": options.trials or None}
        recording = stack.enter_context(Recording("ab", options=shape, subjects=subjects, out=args.out))
        isolate_mounts()

        def keep(report: AbReport, *, complete: bool = False) -> None:
            notes = {"A": args.a, "B": args.b, "precision": f"{args.precision:.2%}"}
            recording.save(report.series(), report.course(), others=report.others, notes=notes, complete=complete)

        keep(measure_ab(options, _progress, keep), complete=True)
        comparisons = compare([Named("this run", recording.result)], args.threshold)
        _finish(args, recording, lambda: show(comparisons))
        tell_unsaid(comparisons)
        return exit_code(comparisons)


def run_releases(args: argparse.Namespace) -> int:
    """Measure releases, and print them side by side; 1 if nothing could be measured."""
    from lab.agent.releasefile import read_releases
    from lab.bench.releases import ReleasesOptions, ReleasesReport, measure_releases, sides_of, subjects_of

    sides = sides_of(read_releases(args.file))
    for side in sides:
        check_library(side.library)
    require("root", "clang", "ip")
    for side in sides:
        check_attach(side.attach)
    from lab.bench.topology import isolate_mounts
    from lab.cli.releases_view import show
    from lab.results.recording import Recording

    options = ReleasesOptions(sides, args.rounds, args.trials)
    with Recording("releases", options={}, subjects=subjects_of(sides), out=args.out) as recording:
        isolate_mounts()

        def keep(report: ReleasesReport, *, complete: bool = False) -> None:
            notes = {"trials": args.trials}
            recording.save(report.series, report.course(), others=report.others, notes=notes, complete=complete)

        keep(measure_releases(options, _progress, keep), complete=True)
        _finish(args, recording, lambda: show(recording.result))
        return 0 if any(series.values for series in recording.result.series) else 1


def run_export(args: argparse.Namespace) -> int:
    """Print a result in the form of another tool."""
    from lab.results.export import to_bencher, to_github, to_lines, to_pyperf
    from lab.results.files import read_measured
    from lab.results.result import Better

    result = read_measured(args.result)
    if args.form == "jsonl":
        if args.side is not None:
            raise BadOption("--side is for the other forms: JSON lines have both sides")
        print(to_lines(result), end="")
        return 0
    side = chosen_side(result, args.side, args.result)
    match args.form:
        case "pyperf":
            text = to_pyperf(result, side)
        case "bencher":
            text = to_bencher(result, side)
        case _:
            better = Better.LOWER if args.form == "customSmallerIsBetter" else Better.HIGHER
            text = to_github(result, side, better)
    print(text, end="")
    return 0


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def _resolved(library: Path | None) -> Path | None:
    return None if library is None else library.resolve()


def _reload_subject(args: argparse.Namespace, *, object_file: Path | None = None) -> dict[str, str]:
    from lab.results.subject import subject_of

    return subject_of(
        library=_resolved(args.library),
        defines=args.defines,
        object_file=object_file,
        loader=", ".join(args.loaders),
        attach=args.attach or Attachment.TC,
    )


def _recording(args: argparse.Namespace, options: Mapping[str, object], subject: Mapping[str, str]) -> Recording:
    """Return the recording of a measurement that has no sides."""
    from lab.results.recording import Recording

    return Recording(args.bench, options=options, subjects={"": subject}, out=args.out)


def _course(args: argparse.Namespace) -> Course:
    from lab.bench.rounds import warm_up
    from lab.results.result import Course

    return Course(rounds=args.rounds, discarded=warm_up(args.rounds))


def _finish(args: argparse.Namespace, recording: Recording, show: Callable[[], None]) -> int:
    """Print the result, and warn if other processes used so much of the CPUs that the figures are unreliable."""
    from lab.results.result import NOISY, to_text

    _progress("")
    if args.json:
        print(to_text(recording.result), end="")
        return 0
    show()
    others = recording.result.load.others
    # The sides of one run have the same others: they are compared all the same.
    if args.bench != "ab" and others is not None and others > NOISY:
        words = f"other processes had {others:.0%} of the CPUs meanwhile: measure again"
        print(f"reloadlab: warning: {words}", file=sys.stderr)
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<40}\r", end="", file=sys.stderr, flush=True)

"""What reloadlab's pytest plugin does once it is used: nodes for tests, checks, a record of every scenario.

The fixtures, marks and options are declared in `reloadlab.pytest_plugin`, which loads this module when one of them is
used and registers it as a plugin.

The mark of a scenario takes the fields of `NodeSpec` and, as `agent=`, options of `Agent`; `flows` and `rate` are
those of `Scenario` (lab.scenario.marks). The node is up, loaded and under traffic when the test begins; when it ends,
every invariant is checked as part of the test. The mark of several nodes takes the arguments of `cluster_specs`. A test
may ask for both, and has both checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError
from lab.agent.options import check_library, parse_macro
from lab.loaders.command import given_loader
from lab.loaders.protocol import NotSupported
from lab.node.topology import NodeSpec
from lab.scenario import marks
from lab.scenario.marks import Kinds, MarkOptions
from lab.scenario.recorder import Recorder
from lab.scenario.timeouts import give_time as give_time  # for reloadlab.pytest_plugin
from lab.scenario.tracebacks import shortened, with_notes
from lab.scenario.verdict import InvariantsViolated, NoVerdict
from lab.system.output import BadDirectory, OutputDirectory
from lab.system.pace import calibrate
from lab.watch.violation import Violation

if TYPE_CHECKING:
    from lab.scenario.scenario import ClusterScenario, Scenario
    from lab.scenario.watched import Watched

# What a scenario takes is imported with the first one: it takes longer than the rest of a run that has none, and a
# session that leaves the scenarios to its workers has none.

_SCENARIOS = pytest.StashKey["list[Watched]"]()
"""The scenarios of a test, of one node and of several, in the order in which it asked for them."""
S = TypeVar("S")

_PASSED = pytest.StashKey[bool]()
"""Whether the test function returned, the checks included."""


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options now, not in every test; called when this module is registered.

    How slow the machine is, is found here for whoever calls pytest himself: `reloadlab run` has found it before.
    """
    try:
        calibrate()
        _defines(config)
        given_loader(config.getoption("--reloadlab-loader"))
    except ReloadlabError as error:
        raise pytest.UsageError(str(error)) from error
    if hasattr(config, "workerinput"):
        return
    record = _made(config, "--reloadlab-record")
    if record is not None:
        config.pluginmanager.register(Recorder(record), "reloadlab.recorder")
    _made(config, "--reloadlab-pcap")


def _made(config: pytest.Config, option: str) -> Path | None:
    """Return the directory that an option names, which is made if it is missing; None if the option is not given."""
    given = config.getoption(option)
    if given is None:
        return None
    try:
        with OutputDirectory(Path(given).absolute()) as directory:
            return directory.path
    except (OSError, BadDirectory) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise pytest.UsageError(f"{option} {given}: {said}") from error


@contextmanager
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """Yield a node that is up, loaded and under traffic; `check` looks at it when the test function has returned."""
    from lab.scenario.scenario import Scenario

    options = _options(request, "reloadlab_node", marks.NODE)
    spec = NodeSpec(_node_name(request.node.name), **options.nodes)
    with (
        _supported(Scenario(spec, needed_macros=options.macros, **options.scenario)) as running,
        _checked(request, running),
    ):
        _capture(request, running)
        request.node.ihook.pytest_reloadlab_loaded(item=request.node, running=running)
        yield running


@contextmanager
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterScenario]:
    """Yield nodes on one underlay, loaded and under traffic; `check` looks at them as well."""
    from lab.agent.cluster import cluster_specs
    from lab.scenario.scenario import ClusterScenario

    options = _options(request, "reloadlab_cluster", marks.CLUSTER)
    specs = cluster_specs(_node_name(request.node.name), **{"nodes": 2, **options.nodes})
    nodes = ClusterScenario(specs, needed_macros=options.macros, **options.scenario)
    with _supported(nodes) as running, _checked(request, running):
        _capture(request, running)
        request.node.ihook.pytest_reloadlab_loaded(item=request.node, running=running)
        yield running


@contextmanager
def _supported(scenario: AbstractContextManager[S]) -> Iterator[S]:
    """Enter a scenario; the test is skipped if its loader cannot load it, or the kernel has not all its devices."""
    from lab.node.builder import NoVlanDevices

    with ExitStack() as stack:
        try:
            running = stack.enter_context(scenario)
        except (NotSupported, NoVlanDevices) as error:
            pytest.skip(str(error))
        yield running


@contextmanager
def _checked(request: pytest.FixtureRequest, running: Watched) -> Iterator[None]:
    """Have `check` look at a scenario. Where it is not called, as in a unittest.TestCase, the end of the block does."""
    request.node.stash.setdefault(_SCENARIOS, []).append(running)
    yield
    # The checks would only hide why the test has failed.
    if not request.node.stash.get(_PASSED, False):
        running.abandon()


def _capture(request: pytest.FixtureRequest, running: Watched) -> None:
    """Keep the packets of a scenario if there is a directory for those around its findings."""
    directory = request.config.getoption("--reloadlab-pcap")
    if directory is not None:
        running.capture(Path(directory).absolute() / f"{running.agents[0].node.name}.pcapng")


def skip_unsupported(item: pytest.Item) -> None:
    """Skip a test that has asked a loader for something that it does not do, whatever came of it."""
    for running in item.stash.get(_SCENARIOS, []):
        for error in running.refused:
            pytest.skip(str(error))


def check(item: pytest.Item) -> None:
    """Check the invariants of all scenarios that a test has; InvariantsViolated, with those of all, fails the test.

    NoVerdict makes it an error of the test, if nothing was violated.
    """
    violations: list[Violation] = []
    undecided: NoVerdict | None = None
    for running in item.stash.get(_SCENARIOS, []):
        try:
            running.finish()
        except InvariantsViolated as error:
            violations += error.violations
        except NoVerdict as error:
            undecided = error
    if violations:
        raise InvariantsViolated(violations)
    if undecided is not None:
        raise undecided


def _options(request: pytest.FixtureRequest, name: str, nodes: Kinds) -> MarkOptions:
    """Return what the mark and the command line say about the nodes, and about the scenario and its agents."""
    # Several marks add up, such as one of the module and one of a parameter; of two values the closest is taken.
    found = list(request.node.iter_markers(name))
    args = tuple(arg for mark in found for arg in mark.args)
    kwargs = {option: value for mark in reversed(found) for option, value in mark.kwargs.items()}
    options = MarkOptions.parse(name, args, kwargs, nodes=nodes)
    library = request.config.getoption("--reloadlab-library")
    if library is not None:
        options.scenario["library"] = Path(library).resolve()
    check_library(options.scenario.get("library"))
    loader = request.config.getoption("--reloadlab-loader")
    loader = options.scenario.get("loader") if loader is None else loader
    options.scenario["loader"] = given_loader(loader)
    attach = request.config.getoption("--reloadlab-attach")
    if attach is not None:
        # A mark that says how is about that.
        options.scenario.setdefault("attach", Attachment(attach))
    options.scenario.setdefault("templates", _templates(request.getfixturevalue("tmp_path_factory")))
    options.scenario["defines"] = (*_defines(request.config), *options.scenario.get("defines", ()))
    request.node.ihook.pytest_reloadlab_options(item=request.node, options=options)
    return options


def _templates(factory: pytest.TempPathFactory) -> Path:
    """Return the directory of compiled templates that all scenarios of a session share, in whatever worker they run."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reloadlab-templates"


def _defines(config: pytest.Config) -> list[tuple[str, str]]:
    return [parse_macro(text) for text in config.getoption("--reloadlab-define")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say what failed without our own frames, and send along what the scenarios did."""
    report = yield
    if call.excinfo is not None and report.failed:
        report.longrepr = shortened(item, call.excinfo, report.longrepr)
    scenarios = item.stash.get(_SCENARIOS, [])
    if report.when == "call":
        item.stash[_PASSED] = report.passed
        if report.failed and call.excinfo is not None:
            report.longrepr = with_notes(report.longrepr, _notes(item, scenarios, call.excinfo.value))
    if scenarios and (report.when == "call" or report.failed):
        from lab.scenario.details import details

        # As text, which every kind of worker can send.
        error = None if call.excinfo is None else call.excinfo.value
        if report.failed:
            for running in scenarios:
                running.note_unchecked()
        report.reloadlab = json.dumps(details(scenarios, error))  # type: ignore[attr-defined]
    if report.when == "teardown" and _SCENARIOS in item.stash:
        # All that they have seen: pytest keeps the item until the session ends.
        del item.stash[_SCENARIOS]
    return report


def _notes(item: pytest.Item, scenarios: Sequence[Watched], error: BaseException) -> list[str]:
    """Return what is told of the scenarios of a failed test besides its error: findings so far, and labs that stay."""
    found = [] if isinstance(error, InvariantsViolated) else [v for running in scenarios for v in running.findings]
    notes = ["violated until then:", *(f"  {violation}" for violation in found)] if found else []
    notes += [line for running in scenarios for line in _packets(running)]
    if item.config.getoption("--reloadlab-keep"):
        from lab.scenario.keeping import keep

        notes += [line for running in scenarios for line in keep(running.agents)]
    return notes


def _packets(running: Watched) -> Iterator[str]:
    """Write the packets around the findings; yield where they are, and what is missing."""
    try:
        path = running.write_packets()
    except ReloadlabError as error:
        yield str(error)
        return
    if path is not None:
        yield f"packets around the findings: {path}"
        yield from running.packet_gaps


def _node_name(test: str) -> str:
    """Return a name that no other test of any worker or user has at the same time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    # A name need not have a letter that a lab's name may have.
    readable = re.sub(r"[^A-Za-z0-9]+", "-", test.removeprefix("test_")).strip("-")[:14].strip("-") or "test"
    return f"{readable}-{worker}-{os.getpid()}"

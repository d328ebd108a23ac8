"""The pytest plugin that an installed reloadlab registers: options, marks and fixtures, all with names of their own.

    @pytest.mark.reloadlab_node(pods=3, endpoint_routes=True)
    def test_mine(reloadlab_scenario):
        reloadlab_scenario.reload("pod-1")

    @pytest.mark.reloadlab_cluster(nodes=2, tunnel=True, each={2: {"endpoint_routes": True}})
    def test_ours(reloadlab_cluster):
        reloadlab_cluster.reload("2/pod-1")

pytest loads this module in every project of the environment. It therefore imports only pytest and the standard library,
and does nothing to a test that does not use its fixtures or marks. The code behind it is `lab.scenario.plugin`, loaded
when a fixture or an option of ours is used; hooks in that module take effect from then on. Options of pytest must be
declared here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from reloadlab import hooks
from reloadlab.home import Shadowed, enter

if TYPE_CHECKING:
    from lab.scenario.scenario import ClusterScenario, Scenario

FIXTURES = frozenset({"reloadlab_scenario", "reloadlab_cluster"})

NEEDS_ROOT = "needs root"
NEEDS_MACROS = "needs macros that only our own C knows"
NEEDS_OUR_LOADER = "needs steps that only our own loader has"

_LAB = pytest.StashKey[Any]()
"""The module lab.scenario.plugin, once it is loaded."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("reloadlab")
    group.addoption("--reloadlab-record", metavar="DIR", help="write a JSON file per scenario into this directory")
    group.addoption("--reloadlab-keep", action="store_true", help="leave the labs of tests that fail, to look at them")
    group.addoption("--reloadlab-pcap", metavar="DIR", help="write the packets around each finding into this directory")
    group.addoption("--reloadlab-library", metavar="DIR", help="C sources instead of our own, e.g. Cilium's bpf/")
    group.addoption("--reloadlab-loader", metavar="NAME|COMMAND", help="loader instead of the built-in one")
    group.addoption(
        "--reloadlab-attach", choices=("tc", "tcx", "auto"), help="how programs are attached where no mark says it"
    )
    group.addoption(
        "--reloadlab-define",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a macro for the C of every node",
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks of scenarios."""
    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks; load the code behind them at once if an option asks for something."""
    config.addinivalue_line("markers", "reloadlab_node(**spec): the node of a scenario, as fields of NodeSpec")
    config.addinivalue_line(
        "markers", "reloadlab_cluster(nodes, each, **spec): several nodes, as arguments of cluster_specs"
    )
    config.addinivalue_line(
        "markers", "reloadlab_own_sources(reason): checks what other C sources than ours do not promise"
    )
    config.addinivalue_line(
        "markers", "reloadlab_own_loader(reason): checks what other loaders than ours do not promise"
    )
    options = ("record", "keep", "pcap", "library", "loader", "define")
    if any(config.getoption(f"--reloadlab-{name}") for name in options):
        try:
            _load(config)
        except Shadowed as error:
            raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip scenarios that cannot run: without root, or with another C or loader where they need our own.

    The others get more time on a slow machine.
    """
    scenarios = [item for item in items if FIXTURES.intersection(getattr(item, "fixturenames", ()))]
    lab = config.stash.get(_LAB, None)
    if lab is not None:
        lab.give_time(config, scenarios)
    for item in scenarios:
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason=NEEDS_ROOT))
    for item in items:
        ours = item.get_closest_marker("reloadlab_own_sources")
        if config.getoption("--reloadlab-library") is not None and ours is not None:
            item.add_marker(pytest.mark.skip(reason=ours.args[0] if ours.args else NEEDS_MACROS))
        ours = item.get_closest_marker("reloadlab_own_loader")
        if config.getoption("--reloadlab-loader") not in (None, "builtin") and ours is not None:
            item.add_marker(pytest.mark.skip(reason=ours.args[0] if ours.args else NEEDS_OUR_LOADER))


@pytest.fixture
def reloadlab_scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """A node that is up, loaded and under traffic; its invariants are checked when the test function returns."""
    with _lab(request.config).scenario(request) as running:
        yield running


@pytest.fixture
def reloadlab_cluster(request: pytest.FixtureRequest) -> Iterator[ClusterScenario]:
    """Nodes on one underlay, loaded and under traffic; their invariants are checked when the test function returns."""
    with _lab(request.config).cluster(request) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Check the invariants while the test still runs: what they find fails the test, not its teardown."""
    try:
        result = yield
    finally:
        # Asked only now: the test may have asked for its scenario by request.getfixturevalue().
        lab = pyfuncitem.config.stash.get(_LAB, None)
        if lab is not None:
            lab.skip_unsupported(pyfuncitem)
    if lab is not None:
        lab.check(pyfuncitem)
    return result


def _lab(config: pytest.Config) -> Any:
    if os.geteuid() != 0:
        # Asked for within the test, or else it would have been skipped before.
        pytest.skip(NEEDS_ROOT)
    try:
        return _load(config)
    except Shadowed as error:
        # Not pytest.fail(), which would show this error twice.
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def _load(config: pytest.Config) -> Any:
    """Return lab.scenario.plugin, registered as a plugin of this session; Shadowed if it cannot be imported."""
    lab = config.stash.get(_LAB, None)
    if lab is None:
        enter()
        lab = importlib.import_module("lab.scenario.plugin")
        config.stash[_LAB] = lab
        if not config.pluginmanager.is_registered(lab):
            config.pluginmanager.register(lab, "reloadlab.lab")
    return lab

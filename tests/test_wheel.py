"""reloadlab installed from a wheel: complete, usable from anywhere, and unnoticed by whoever does not ask for it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installed import NOBODY, ROOT, SOURCES, Environment, build_wheel, make_environment
from tests.test_repository import repository_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that every user can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="reloadlab-wheel-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def wheel(place: Path) -> Path:
    return build_wheel(place)


@pytest.fixture(scope="module")
def installed(place: Path, wheel: Path) -> Iterator[Environment]:
    run_directory = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    yield make_environment(place, wheel, run_directory)
    assert not run_directory.exists()


@pytest.fixture
def project(place: Path) -> Iterator[Path]:
    """An empty directory that every user can enter."""
    directory = place / f"project-{uuid.uuid4().hex[:8]}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def write(project: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def place_in_wheel(path: Path) -> str:
    name = str(path.relative_to(ROOT))
    package = name.partition("/")[0]
    return {"reloadlab": "", "scenarios": "reloadlab/_suites/"}.get(package, "reloadlab/_packages/") + name


def test_wheel_holds_every_file_of_every_room(wheel: Path) -> None:
    sources = [path for path in repository_files() if path.relative_to(ROOT).parts[0] in SOURCES]
    assert sources
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {place_in_wheel(path) for path in sources}


def test_wheel_holds_the_licences(wheel: Path) -> None:
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name}
    assert names == {"LICENSE", "LICENSE.BSD-2-Clause", "LICENSE.GPL-2.0"}


def test_one_name_is_taken_in_the_environment(wheel: Path) -> None:
    """All that other projects could meet, besides the metadata."""
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"reloadlab"}


@pytest.mark.privileged
def test_scenarios_run_from_an_empty_directory(installed: Environment, project: Path) -> None:
    argv = (installed.command("reloadlab"), "run", "-k", "hitless and pod-1 and not time", "--rounds", "0")
    done = installed.run(*argv, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all passed" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in project.iterdir()] == ["out"]
    names = [scenario["name"] for scenario in json.loads((project / "out/run.json").read_text())["scenarios"]]
    assert len(names) == 2
    assert all(name.startswith("scenarios/test_hitless.py::") for name in names)


OWN_NAMES = """
import pytest
from reloadlab import ClusterScenario, Gate, Scenario, Violation

@pytest.mark.reloadlab_node(pods=1)
def test_node(reloadlab_scenario: Scenario) -> None:
    seen = []
    reloadlab_scenario.reload("pod-1", gate=Gate(lambda step, work: seen.append(step.name), before="commit"))
    assert seen == ["commit"]

@pytest.mark.reloadlab_cluster(nodes=2, each={2: {"endpoint_routes": True}})
def test_cluster(reloadlab_cluster: ClusterScenario) -> None:
    reloadlab_cluster.reload("2/pod-1")

@pytest.mark.reloadlab_node(pods=1)
def test_asked_for_late(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("reloadlab_scenario").violations.append(Violation(1, "found at the end"))
"""
WITHOUT_ROOT = """
def test_asks(reloadlab_cluster):
    pass

def test_asks_late(request):
    request.getfixturevalue("reloadlab_scenario")

def test_does_not():
    pass
"""
SHORT_NAMES = """
import pytest

@pytest.mark.node(pods=1)
def test_node(scenario):
    scenario.reload("pod-1")

@pytest.mark.privileged
def test_marked():
    pass
"""


@pytest.mark.privileged
def test_suite_of_a_user(installed: Environment, project: Path) -> None:
    write(project, {"test_mine.py": OWN_NAMES})
    argv = [installed.command("pytest"), "-q", "--strict-markers", "-p", "no:cacheprovider", "-W", "error"]
    done = installed.run(*argv, cwd=project)
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "FAILED test_mine.py::test_asked_for_late - invariants violated:" in done.stdout
    assert "invariant 1: found at the end" in done.stdout


@pytest.mark.privileged
def test_without_root_scenarios_are_skipped(installed: Environment, project: Path) -> None:
    """Also one that is asked for within the test; and nothing else."""
    write(project, {"test_mine.py": WITHOUT_ROOT})
    done = installed.run(*NOBODY, installed.command("pytest"), "-rs", "-p", "no:cacheprovider", cwd=project)
    assert "1 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("needs root") == 2


@pytest.mark.privileged
def test_suite_with_short_names(installed: Environment, project: Path) -> None:
    """Through the command, and by pytest alone with the one line in conftest.py."""
    write(project, {"mine/test_short.py": SHORT_NAMES})
    words = (installed.command("reloadlab"), "run", "--rounds", "0", "mine")
    done = installed.run(*words, cwd=project)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "2 scenarios" in done.stdout
    write(project, {"conftest.py": 'pytest_plugins = ["reloadlab.short_names"]\n'})
    argv = [installed.command("pytest"), "-q", "--strict-markers", "-p", "no:cacheprovider", "-W", "error"]
    done = installed.run(*argv, "-n", "2", cwd=project)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


THEIRS = {
    "lab/__init__.py": "",
    "lab/tool.py": "VALUE = 1\n",
    "datapath/__init__.py": "VALUE = 2\n",
    # Without __init__.py: a regular package of that name anywhere on the search path would hide them.
    "bpf/generate.py": "VALUE = 3\n",
    "bpf/program.c": "int main(void) { return 0; }\n",
    "scenarios/helper.py": "VALUE = 4\n",
    "pytest.ini": "[pytest]\n"
    "addopts = -q --strict-markers --strict-config -p no:cacheprovider -W error\n"
    "markers =\n    privileged: theirs\n    node(size): theirs\n    own_sources\n",
    "conftest.py": """
import pytest

@pytest.fixture
def cluster():
    return "their cluster"

@pytest.fixture
def scenario():
    return "their scenario"
""",
    "test_theirs.py": """
import sys
import pytest
import bpf.generate, datapath, lab.tool, scenarios.helper

def test_own_packages():
    assert (lab.tool.VALUE, datapath.VALUE, bpf.generate.VALUE, scenarios.helper.VALUE) == (1, 2, 3, 4)
    assert type(lab.tool.__spec__.loader).__name__ == "SourceFileLoader"

@pytest.mark.privileged
@pytest.mark.own_sources
@pytest.mark.node(size=3)
def test_own_marks():
    pass

def test_own_fixtures(cluster, scenario):
    assert (cluster, scenario) == ("their cluster", "their scenario")

def test_nothing_of_reloadlab_is_loaded():
    loaded = {name for name in sys.modules if name.partition(".")[0] in ("reloadlab", "pyroute2", "nsenter", "rich")}
    assert loaded <= {"reloadlab", "reloadlab.home", "reloadlab.hooks", "reloadlab.pytest_plugin"}
    assert not [place for place in sys.path if "_packages" in place and "reloadlab" in place]
""",
}
"""A project that has every name of ours for something else."""

WITHOUT_PLUGIN = ("-p", "no:reloadlab.pytest_plugin")


def told(installed: Environment, project: Path, *argv: str) -> str:
    """What a run of pytest prints, but for its times; in order of the lines, which differs between processes."""
    done = installed.run(*argv, cwd=project)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return re.sub(r"\d+\.\d+s", "", done.stdout)


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("user", "workers", "module"),
    [
        pytest.param((), (), False, id="root, pytest"),
        pytest.param(NOBODY, ("-n", "2"), True, id="nobody, python -m pytest, xdist"),
    ],
)
def test_foreign_project_is_not_disturbed(
    installed: Environment, project: Path, user: tuple[str, ...], workers: tuple[str, ...], module: bool
) -> None:
    """It runs, and prints the same as if reloadlab's plugin were not there."""
    write(project, THEIRS)
    pytest_argv = [installed.command("python"), "-m", "pytest"] if module else [installed.command("pytest")]
    argv = [*user, *pytest_argv, *workers]
    with_plugin = told(installed, project, *argv)
    assert "4 passed" in with_plugin
    assert with_plugin == told(installed, project, *argv, *WITHOUT_PLUGIN)
    assert list(project.rglob("__pycache__")) == []


@pytest.mark.privileged
def test_package_that_shadows_ours_is_named(installed: Environment, project: Path) -> None:
    asking = "def test_asking(reloadlab_scenario):\n    pass\n"
    write(project, THEIRS | {"test_asking.py": asking, "test_using.py": "from reloadlab import NodeSpec\n"})
    done = installed.run(installed.command("pytest"), "test_asking.py", "test_theirs.py", cwd=project)
    words = f"reloadlab: {project}/bpf hides reloadlab's own package bpf: rename it, or keep the suite"
    assert done.stdout.count("hides") == 1
    assert f"\n{words}" in done.stdout
    assert "\nERROR test_asking.py::test_asking - Failed: reloadlab: " in done.stdout
    assert "4 passed, 1 error" in done.stdout
    done = installed.run(installed.command("pytest"), "test_using.py", cwd=project)
    assert f"E   reloadlab.home.Shadowed: {words}" in done.stdout
    done = installed.run(installed.command("pytest"), "--reloadlab-record", "out", cwd=project)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.startswith(f"ERROR: {words}")


@pytest.mark.privileged
def test_own_suite_beside_folders_of_the_same_names(installed: Environment, project: Path) -> None:
    """A folder bpf/ with C in it hides nothing, and a folder scenarios/ meets nothing of ours."""
    suite = "import scenarios.helper\nfrom reloadlab import Gate\n" + SHORT_NAMES
    write(project, {"bpf/program.c": "", "scenarios/helper.py": "", "scenarios/test_mine.py": suite})
    write(project, {"conftest.py": 'pytest_plugins = ["reloadlab.short_names"]\n'})
    done = installed.run(installed.command("pytest"), "-q", "-p", "no:cacheprovider", cwd=project)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.privileged
def test_scenarios_run_in_a_foreign_project(installed: Environment, project: Path) -> None:
    """Neither its packages, nor its modules with names of Python's own, nor what it configures for its pytest."""
    hostile = "raise RuntimeError('imported from the current directory')\n"
    write(project, {"pathlib.py": hostile, "random.py": hostile, "selectors.py": hostile})
    write(project, {name: hostile for name in THEIRS if name.endswith(".py") and name.partition("/")[2]})
    write(project, {"lab/__init__.py": hostile, "datapath/__init__.py": hostile, "conftest.py": hostile})
    write(project, {"pytest.ini": "[pytest]\naddopts = --no-such-option\npython_files = none_*.py\n"})
    select = ("-k", "hitless and pod-1 and not routes and not time")
    write(project, {"elsewhere/lab/__init__.py": hostile, "elsewhere/scenarios/__init__.py": hostile})
    argv = (installed.command("reloadlab"), "run", "--rounds", "0", *select)
    done = installed.run(*argv, cwd=project, env={"PYTHONPATH": str(project / "elsewhere")})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "1 scenario in" in done.stdout

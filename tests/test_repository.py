"""The repository itself: its layout, its lock, what it may say, and the direction of its imports."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = {"bpf": 0, "datapath": 1, "lab": 2, "reloadlab": 3, "scenarios": 4, "tests": 5}
"""Who may import whom: a package imports itself and those with a smaller number."""

ROOMS = {
    "datapath": (
        ("errors",),
        ("endpoint",),
        ("base",),
        ("kernel", "object"),
        ("load",),
        ("build",),
        ("reload",),
        ("loader",),
    ),
    "lab": (
        ("errors",),
        ("system",),
        ("abi", "gates", "vm"),
        ("box", "node"),
        ("loaders", "results", "traffic"),
        ("agent",),
        ("watch",),
        ("doctor", "scenario", "bench"),
        ("corpus", "machines", "proof", "report"),
        ("cli",),
    ),
}
"""The floors of each package, the lowest first: a room imports itself and what lies on a lower floor.

Modules at the top of a package (`errors`) are rooms of their own; those of the lowest floor may import each other.
"""

REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("npmjs", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
]
"""In parts, so that this file may be searched like the others."""


def repository_files() -> list[Path]:
    """Every file that is or could be committed."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return list(unpacked_files())
    # Root may test a checkout that belongs to somebody else, which git would refuse to read.
    argv = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def unpacked_files() -> Iterator[Path]:
    """The same for a tree without git: what no tool of ours makes."""
    for directory, names, files in os.walk(ROOT):
        built = ("out", "build") if directory == str(ROOT) else ()
        made = [n for n in names if n in (*built, "__pycache__") or n.endswith(".egg-info") or n[0] == "."]
        names[:] = [name for name in names if name not in made or name == ".ci"]
        yield from (Path(directory) / name for name in files)


def text_files() -> Iterator[tuple[Path, str]]:
    for path in repository_files():
        data = path.read_bytes()
        if b"\0" not in data:
            yield path, data.decode()


def lock_entries() -> dict[str, str]:
    """Return every entry of the lock, its hashes included, by the name of its package."""
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    return {re.split(r"[=<>@ \[]", entry, maxsplit=1)[0]: entry for entry in entries}


@pytest.mark.parametrize(
    "name",
    [
        *("pyproject.toml", "requirements.lock", "Makefile", "Vagrantfile", "README.md", "LICENSE", ".ci/run"),
        *("bpf", "datapath", "lab", "reloadlab", "scenarios", "tests"),
    ],
)
def test_top_level(name: str) -> None:
    assert (ROOT / name).exists()


def test_a_tree_without_git_has_the_same_files() -> None:
    committed = {path for path in repository_files() if path.suffix in (".py", ".c", ".h", ".lock")}
    assert committed == {path for path in unpacked_files() if path.suffix in (".py", ".c", ".h", ".lock")}


def test_the_virtual_machine_gets_every_committed_file() -> None:
    text = (ROOT / "Vagrantfile").read_text()
    patterns = re.findall(r'"([^"]+)"', text.partition("rsync__exclude: [")[2].partition("]")[0])
    assert patterns
    names = [path.relative_to(ROOT).as_posix() for path in repository_files()]
    left_out = [name for name in names if any(excludes(pattern, name) for pattern in patterns)]
    assert left_out == []


def excludes(pattern: str, name: str) -> bool:
    """Tell whether rsync's --exclude with this pattern for directories leaves out a file below the root."""
    directories = name.split("/")[:-1]
    if pattern.startswith("/"):
        directories = directories[:1]
    return any(fnmatch.fnmatchcase(directory, pattern.strip("/")) for directory in directories)


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_c_sources_name_their_licence() -> None:
    sources = [path for path in repository_files() if path.is_relative_to(ROOT / "bpf") and path.suffix in (".c", ".h")]
    assert sources
    missing = [str(p) for p in sources if "GPL-2.0-only OR BSD-2-Clause" not in p.read_text().partition("\n")[0]]
    assert missing == []


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.stat(script).st_mode & stat.S_IXUSR
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_make_test_runs_every_check() -> None:
    listed = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for check in ("tools/setup", "ruff check .", "ruff format --check .", "bin/mypy", "pytest -n auto"):
        assert check in listed.stdout


@pytest.mark.parametrize(
    ("kernels", "fetched"),
    [("6.1,newest", "vm fetch 6.1 newest"), ("6.1,out/vmlinuz", "vm fetch 6.1"), ("./vmlinuz", None)],
)
def test_make_kernels_fetches_no_image(kernels: str, fetched: str | None) -> None:
    argv = ["make", "-n", "kernels", f"KERNELS={kernels}"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert [line.strip() for line in re.findall("vm fetch.*", listed)] == ([fetched] if fetched else [])
    assert f"run --kernel {kernels} " in listed


@pytest.mark.parametrize("script", ["tools/setup", "tools/as-root", "tools/lock"])
def test_scripts_are_executable_posix_shell(script: str) -> None:
    assert os.stat(ROOT / script).st_mode & stat.S_IXUSR
    subprocess.run(["sh", "-n", ROOT / script], timeout=60, check=True)


def test_every_package_of_the_lock_has_one_version_and_hashes() -> None:
    entries = lock_entries()
    assert entries
    for name, entry in entries.items():
        assert re.match(rf"{re.escape(name)}==[\w.]+ (; python_version < \"[\d.]+\" )?\\\n", entry), entry
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)) >= 1, entry


def test_lock_holds_what_pyproject_asks_for_and_no_bcc() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[<>=~! ]", text, maxsplit=1)[0] for text in project["dependencies"]}
    asked |= {re.split(r"[<>=~! ]", text, maxsplit=1)[0] for text in project["optional-dependencies"]["dev"]}
    assert asked <= set(lock_entries())
    # The index has another package of that name; ours is the distribution's python3-bpfcc.
    assert "bcc" not in asked | set(lock_entries())


def test_lock_names_no_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert re.findall(r"^\s*-(?!-hash)\S*", text, flags=re.MULTILINE) == []


def test_no_file_names_a_registry_host() -> None:
    found = [(str(path), host) for path, text in text_files() for host in REGISTRY_HOSTS if host in text]
    assert found == []


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_one_way(package: str) -> None:
    files = python_files(package)
    assert files
    against = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in files
        for imported in imported_packages(path)
        if LAYERS.get(imported, -1) > LAYERS[package]
    ]
    assert against == []


def imported_modules(path: Path) -> Iterator[tuple[str, str]]:
    """Every import of a file as (module, name), the name empty where a module is imported as a whole."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def room_of(path: Path) -> str:
    """The room of a module: the directory below its package, or the module itself at the top of the package."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


def rooms_of(module: str, name: str, package: str) -> str | None:
    """The room of `package` that an import leads to, None if it leads elsewhere."""
    parts = [*module.split("."), name]
    return parts[1] if parts[0] == package and parts[1] else None


def misplaced_imports(package: str) -> list[str]:
    """Every import that goes from a room to one on its own floor or above it, and every room that has no floor."""
    floors = {room: number for number, rooms in enumerate(ROOMS[package]) for room in rooms}
    found = []
    for path in python_files(package):
        room = room_of(path)
        if room == "__init__":
            continue
        for module, name in imported_modules(path):
            target = rooms_of(module, name, package)
            if target in (None, room) or (floors.get(room) == floors.get(target or "") == 0):
                continue
            if room not in floors or target not in floors or floors[target] >= floors[room]:
                found.append(f"{path.relative_to(ROOT)} imports {package}.{target}")
    return found


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_rooms_on_lower_floors(package: str) -> None:
    assert misplaced_imports(package) == []


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_a_floor_and_every_floor_is_there(package: str) -> None:
    present = {room_of(path) for path in python_files(package)} - {"__init__"}
    assert present == {room for floor in ROOMS[package] for room in floor}


@pytest.mark.parametrize("package", ROOMS)
def test_no_module_reaches_for_a_private_name_of_another(package: str) -> None:
    private = [
        f"{path.relative_to(ROOT)} imports {name} from {module}"
        for path in python_files(package)
        for module, name in imported_modules(path)
        if module.partition(".")[0] in LAYERS
        and (name.startswith("_") or any(part.startswith("_") for part in module.split(".")))
    ]
    assert private == []


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_says_what_lives_there(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("package", ["bpf", "datapath"])
def test_the_pipeline_knows_no_pytest(package: str) -> None:
    assert [str(path) for path in python_files(package) if "pytest" in imported_packages(path)] == []


def test_scenarios_wait_longer_on_a_slow_machine() -> None:
    """A fixed time would be a verdict on the machine. None is waited for in vain: `timeout=0` only looks."""
    wait = re.compile(r"settimeout\(|monotonic\(\) \+|\btimeout=(?!0\b)")
    fixed = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "scenarios").glob("*.py"))
        for line in path.read_text().splitlines()
        if wait.search(line) and "slowness()" not in line
    ]
    # It is how long packets are sent, not how long something is waited for.
    assert fixed == ["test_hitless.py: deadline = time.monotonic() + dwell"]

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from lab.agent.cluster import build, cluster_specs
from lab.errors import (
    LabBusy,
    LabElsewhere,
    LabExists,
    LabNotFound,
    LabNotReady,
    LabSystemError,
    NameTaken,
    NotALab,
    Status,
    UnsafeRun,
)
from lab.node import marks, registry
from lab.node.node import Node
from lab.node.status import BORROWED, FACTS, LabStatus, holders_of
from lab.node.topology import NodeSpec, plan_node
from lab.system import mounts, netns
from tests.lab.labs import ROOT, UP, killed_at, mounts_of, python, removed, start, unique_name
from tests.netns import nsenter, program

pytestmark = pytest.mark.privileged

SLEEPER = "import time; print(flush=True); time.sleep(20)"


@pytest.fixture
def name() -> Iterator[str]:
    with removed(unique_name()) as name:
        yield name


@pytest.fixture
def empty_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of labs that nobody else uses; it must be gone in the end."""
    run = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv(registry.RUN_VARIABLE, str(run))
    yield run
    registry.remove_all(force=True)
    assert not run.exists()


def status(name: str) -> LabStatus:
    """Return the line of one lab in the list."""
    (found,) = [lab for lab in registry.list_labs() if lab.name == name]
    return found


def test_life_of_a_lab(name: str) -> None:
    with registry.claim(name) as claim:
        assert status(name).status is Status.STARTING
        assert status(name).pids == (os.getpid(),)
        with pytest.raises(LabNotReady, match=f"lab {name} is starting; try again"), registry.lock_shared(name):
            pass
        with pytest.raises(LabNotReady):
            registry.read_facts(name)
        spec = NodeSpec(name, pods=3, endpoint_routes=True)
        registry.write_facts(claim.root, spec, plan_node(spec))
        claim.keep()
    assert status(name) == LabStatus(name, Status.UP, 3, True, False)
    registry.remove(name)
    assert name not in {lab.name for lab in registry.list_labs()}
    assert mounts_of(name) == []


def test_claim_that_is_not_kept_leaves_nothing(name: str) -> None:
    with pytest.raises(KeyError), registry.claim(name):
        raise KeyError
    assert not registry.lab_root(name).exists()
    assert mounts_of(name) == []


def test_files_are_roots_alone(name: str) -> None:
    with registry.claim(name) as claim:
        for path in (claim.root.parent, claim.root, *(claim.root / part for part in ("ns", "bpf", "state"))):
            assert path.stat().st_mode & 0o777 == 0o700
            assert path.stat().st_uid == 0


def test_mounts_are_private(name: str) -> None:
    with Node(NodeSpec(name, pods=1)):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4].startswith(str(registry.lab_root(name))):
                assert "shared:" not in line
                assert "master:" not in line


def test_name_that_is_taken(name: str) -> None:
    with registry.claim(name), pytest.raises(LabExists, match=f"lab {name} is starting"), registry.claim(name):
        pass
    with Node(NodeSpec(name, pods=0)) as node:
        with pytest.raises(LabExists, match=f"lab {name} exists already; to remove it: reloadlab down {name}"):
            Node.up(NodeSpec(name))
        assert node.netns("node").exists()


def test_lab_in_use_is_not_removed(name: str) -> None:
    Node.up(NodeSpec(name, pods=0))
    with registry.lock_shared(name):
        with pytest.raises(LabBusy, match=rf"in use by process {os.getpid()} \(") as busy:
            registry.remove(name)
        assert busy.value.pids == (os.getpid(),)
        assert status(name).status is Status.UP
        with registry.lock_shared(name):
            pass
        registry.remove(name, force=True)
    assert mounts_of(name) == []


def test_removing_lab_looks_at_no_other(name: str) -> None:
    """Who still has the root of a removed lab open must not take the next lab of that name away."""
    with ExitStack() as stack:
        claim = stack.enter_context(registry.claim(name))
        registry.remove(name, force=True)
        Node.up(NodeSpec(name, pods=0))
        assert claim.root.is_mount()
        stack.close()
        assert status(name).status is Status.UP


def test_unknown_lab(empty_run: Path) -> None:
    with pytest.raises(LabNotFound, match="no lab nope; there are no labs"):
        registry.remove("nope")
    Node.up(NodeSpec("there", pods=0))
    for attempt in (registry.remove, registry.read_facts):
        with pytest.raises(LabNotFound, match="no lab nope; the labs are: there"):
            attempt("nope")
    with pytest.raises(LabNotFound), registry.lock_shared("nope"):
        pass


def test_remove_all(empty_run: Path) -> None:
    assert registry.remove_all() == ((), None)
    for name in ("one", "two", "three"):
        Node.up(NodeSpec(name, pods=0))
    with registry.lock_shared("two"):
        gone, failure = registry.remove_all()
        assert gone == ("one", "three")
        assert isinstance(failure, LabBusy)
    assert [lab.name for lab in registry.list_labs()] == ["two"]
    assert registry.remove_all() == (("two",), None)
    assert not empty_run.exists()


def test_full_disk(name: str) -> None:
    with pytest.raises(LabSystemError, match=f"lab {name}: .*No space left on device") as full:
        Node.up(NodeSpec(name, pods=50), size="4k")
    assert full.value.errno == errno.ENOSPC
    assert not registry.lab_root(name).exists()
    assert mounts_of(name) == []


@contextmanager
def stranger(run: Path, kind: str) -> Iterator[Path]:
    """Something in the place of a lab that reloadlab did not make."""
    path = run / "stranger"
    path.mkdir(parents=True)
    if kind == "tmpfs":
        mounts.mount("tmpfs", path, 0, "")
    if kind != "empty directory":
        (path / "letter").write_text("precious")
    if kind == "directory with facts":
        (path / FACTS).write_text("{}")
    yield path
    assert kind == "empty directory" or (path / "letter").read_text() == "precious"
    if kind == "tmpfs":
        mounts.umount(path)
    shutil.rmtree(path)


@pytest.mark.parametrize("kind", ["empty directory", "directory", "directory with facts", "tmpfs"])
def test_what_is_not_marked_is_never_removed(empty_run: Path, kind: str) -> None:
    with stranger(empty_run, kind):
        assert registry.list_labs() == ()
        assert registry.sweep() == ()
        assert registry.remove_all(force=True) == ((), None)
        for attempt in (
            lambda: registry.remove("stranger", force=True),
            lambda: Node.open("stranger"),
            lambda: Node.up(NodeSpec("stranger")),
        ):
            with pytest.raises(NotALab, match="stranger is not a lab: reloadlab leaves it alone"):
                attempt()


MADE_ELSEWHERE = (
    "import sys; from lab.node.node import Node; from lab.node.topology import NodeSpec; "
    "Node.up(NodeSpec(sys.argv[1], pods=1)); print(flush=True); sys.stdin.read()"
)


@pytest.fixture
def elsewhere(empty_run: Path, name: str) -> Iterator[Popen[str]]:
    """A process in a mount namespace of its own in which it has made a lab."""
    argv = ["unshare", "--mount", sys.executable, "-c", MADE_ELSEWHERE, name]
    with Popen(argv, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        yield process
        process.kill()


@pytest.mark.usefixtures("empty_run")
def test_lab_of_another_mount_namespace_is_left_alone(name: str, elsewhere: Popen[str]) -> None:
    assert status(name) == LabStatus(name, Status.ELSEWHERE)
    registry.sweep()
    assert name not in registry.remove_all()[0]
    where = f"nsenter --target {elsewhere.pid} --mount"
    for attempt in (lambda: Node.open(name), lambda: registry.remove(name)):
        with pytest.raises(LabElsewhere, match=f"lab {name} was made in another mount namespace; .*{where}"):
            attempt()
    with pytest.raises(LabElsewhere), registry.lock_shared(name):
        pass
    with pytest.raises(LabExists, match="exists already, in another mount namespace"):
        Node.up(NodeSpec(name))
    there = Path(f"/proc/{elsewhere.pid}/root{registry.lab_root(name)}")
    assert (there / FACTS).exists()
    # Who enters the namespace finds it, complete.
    done = subprocess.run(
        [
            program(),
            *where.split()[1:],
            sys.executable,
            "-c",
            "import sys; from lab.node.node import Node; Node.open(sys.argv[1])",
            name,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.usefixtures("empty_run")
def test_lab_of_another_mount_namespace_is_removed_by_force(name: str, elsewhere: Popen[str]) -> None:
    there = Path(f"/proc/{elsewhere.pid}/root{registry.lab_root(name)}")
    inside = start(nsenter(f"{there}/ns/pod-1", sys.executable, "-c", SLEEPER))
    with inside:
        assert inside.stdout is not None
        inside.stdout.readline()
        registry.remove(name, force=True)
        assert inside.wait(timeout=5) == -9
    assert not registry.lab_root(name).exists()
    assert not there.exists()
    assert f"/{name}" not in Path(f"/proc/{elsewhere.pid}/mountinfo").read_text()


@pytest.mark.usefixtures("empty_run")
def test_lab_whose_mount_namespace_is_gone(name: str, elsewhere: Popen[str]) -> None:
    elsewhere.kill()
    elsewhere.wait()
    assert status(name).status is Status.ELSEWHERE
    with pytest.raises(LabElsewhere, match=f"no process of it is visible; reloadlab down --force {name}"):
        registry.remove(name)
    registry.remove(name, force=True)
    assert not registry.lab_root(name).exists()


def test_marks_without_labs_go(empty_run: Path) -> None:
    empty_run.mkdir()
    marks.add(empty_run / "never-made")
    assert registry.list_labs() == ()
    assert not empty_run.exists()


def test_removal_ends_what_runs_inside(name: str) -> None:
    node = Node.up(NodeSpec(name, pods=1))
    inside = start(nsenter(node.netns("pod-1"), sys.executable, "-c", SLEEPER))
    outside = start([sys.executable, "-c", SLEEPER])
    with inside, outside:
        assert inside.stdout is not None
        assert outside.stdout is not None
        assert (inside.stdout.readline(), outside.stdout.readline()) == ("\n", "\n")
        registry.remove(name)
        assert inside.wait(timeout=1) == -9
        assert outside.poll() is None
        outside.kill()


def test_copy_in_another_mount_namespace_goes_too(name: str) -> None:
    Node.up(NodeSpec(name, pods=1))
    with start(["unshare", "--mount", sys.executable, "-c", SLEEPER]) as copy:
        assert copy.stdout is not None
        copy.stdout.readline()
        there = Path(f"/proc/{copy.pid}/mountinfo")
        assert f"/{name}/" in there.read_text()
        registry.remove(name)
        assert f"/{name}" not in there.read_text()
        copy.kill()


KILLS_UP = {
    "before the mount": ("mount", 1),
    "before it is private": ("mount", 2),
    "before the bpffs": ("mount", 3),
    "between pods": ("mount", 5),
    "before the facts": ("rename", 1),
}
KILLS_DOWN = {
    "before the tree goes": ("umount2", 1, True),
    # The first rmdir(2) finds out that the run directory is still in use.
    "before its directory goes": ("rmdir", 2, False),
}


@pytest.mark.parametrize(("call", "nth"), KILLS_UP.values(), ids=KILLS_UP)
def test_killed_while_it_comes_up(name: str, call: str, nth: int) -> None:
    assert killed_at(call, nth, partial(Node.up, NodeSpec(name, pods=9)))
    assert status(name).status is Status.BROKEN
    with pytest.raises(LabNotReady, match=f"lab {name} is broken; to remove it: reloadlab down {name}"):
        Node.open(name)
    with pytest.raises(LabExists, match="is broken"):
        Node.up(NodeSpec(name))
    registry.remove(name)
    assert not registry.lab_root(name).exists()
    assert mounts_of(name) == []
    with Node(NodeSpec(name, pods=1)):
        assert status(name).status is Status.UP


def test_killed_between_its_mark_and_its_directory(name: str) -> None:
    # The first mkdir(2) finds the run directory.
    registry.run_directory().mkdir(exist_ok=True)
    assert killed_at("mkdir", 2, partial(Node.up, NodeSpec(name, pods=1)))
    assert marks.read(registry.lab_root(name)) is not None
    assert name not in {lab.name for lab in registry.list_labs()}
    assert marks.read(registry.lab_root(name)) is None
    with Node(NodeSpec(name, pods=0)):
        assert status(name).status is Status.UP


def test_killed_between_its_directory_and_its_mark(name: str) -> None:
    Node.up(NodeSpec(name, pods=0))
    assert killed_at("unlink", 1, partial(registry.remove, name))
    assert not registry.lab_root(name).exists()
    assert name not in {lab.name for lab in registry.list_labs()}
    assert marks.read(registry.lab_root(name)) is None


@pytest.mark.parametrize(("call", "nth", "mounted"), KILLS_DOWN.values(), ids=KILLS_DOWN)
def test_killed_while_it_goes_down(name: str, call: str, nth: int, mounted: bool) -> None:
    Node.up(NodeSpec(name, pods=2))
    assert killed_at(call, nth, partial(registry.remove, name))
    assert bool(mounts_of(name)) is mounted
    assert status(name).status is Status.BROKEN
    registry.remove(name)
    assert not registry.lab_root(name).exists()
    assert mounts_of(name) == []


def test_stopping_is_told_from_starting(name: str) -> None:
    Node.up(NodeSpec(name, pods=4))
    root = registry.lab_root(name)
    (root / FACTS).rename(root / "node.json.removed")
    assert status(name) == LabStatus(name, Status.BROKEN, 4, False, False)
    descriptor = os.open(root, os.O_RDONLY)
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert status(name) == LabStatus(name, Status.STOPPING, 4, False, False, (os.getpid(),))


def test_two_processes_want_the_same_name(name: str) -> None:
    with python(UP, name, "5") as one, python(UP, name, "5") as two:
        errors = [one.communicate(timeout=60)[1], two.communicate(timeout=60)[1]]
        assert sorted((one.returncode, two.returncode)) == [0, 1]
    assert sum("LabExists" in error for error in errors) == 1
    assert status(name).status is Status.UP
    assert netns.inode(registry.lab_root(name) / "ns" / "pod-5")


@pytest.mark.parametrize("fault", [LabNotFound, LabBusy])
def test_sweep_passes_over_what_others_remove(
    empty_run: Path, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    """Another process removes a leftover between our list and our turn, or is about to."""
    for each in ("first", "second"):
        Node.up(NodeSpec(each, pods=0))
        (registry.lab_root(each) / BORROWED).touch()
    listed = registry.list_labs()
    with ExitStack() as stack, monkeypatch.context() as patched:
        if fault is LabNotFound:
            registry.remove("first")
        else:
            descriptor = os.open(registry.lab_root("first"), os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        patched.setattr(registry, "list_labs", lambda: listed)
        assert registry.sweep() == ("second",)


def test_sweep_leaves_a_lab_that_was_made_anew(empty_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes a leftover between our list and our turn, and makes a lab of its name."""
    Node.up(NodeSpec("demo", pods=0))
    (registry.lab_root("demo") / BORROWED).touch()
    listed = registry.list_labs()
    assert [lab.is_left_over for lab in listed] == [True]
    registry.remove("demo")
    Node.up(NodeSpec("demo", pods=0))
    with monkeypatch.context() as patched:
        patched.setattr(registry, "list_labs", lambda: listed)
        assert registry.sweep() == ()
    assert status("demo").status is Status.UP


def test_sweep_leaves_a_lab_to_the_process_that_removes_it(empty_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes with its process has a holder until it is being removed: nobody else finds it without."""
    real = registry.remove
    swept: list[tuple[str, ...]] = []

    def remove(name: str, *, force: bool = False, held: int | None = None) -> None:
        patched.undo()
        swept.append(registry.sweep())
        real(name, force=force, held=held)

    with monkeypatch.context() as patched, Node(NodeSpec("own", pods=0)):
        patched.setattr(registry, "remove", remove)
    assert swept == [()]
    assert not empty_run.exists()


def test_a_lab_changes_hands_under_the_lock_of_the_run_directory(
    empty_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between one lock and the next the kernel has none: whoever looked then would find a lab that was left over."""
    changes: list[tuple[int, bool]] = []
    real = fcntl.flock

    def flock(descriptor: int, kind: int) -> None:
        run = os.open(empty_run, os.O_RDONLY)
        try:
            real(run, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            changes.append((kind, True))
        else:
            changes.append((kind, False))
        finally:
            os.close(run)
        real(descriptor, kind)

    with registry.claim("own") as claim, monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        os.close(claim.keep_locked())
    assert (fcntl.LOCK_SH, True) in changes
    assert (fcntl.LOCK_SH, False) not in changes
    registry.remove("own")


def test_a_forked_process_keeps_no_lock(empty_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the descriptors that were open when it was forked, those of locks that another thread held among them."""
    inherited: list[int] = []
    real = holders_of

    def fork(descriptor: int) -> tuple[int, ...]:
        inherited.append(os.dup(descriptor))
        return real(descriptor)

    Node.up(NodeSpec("own", pods=0))
    with ExitStack() as stack, monkeypatch.context() as patched:
        patched.setattr("lab.node.status.holders_of", fork)
        assert registry.list_labs()[0].name == "own"
        with registry.lock_shared("own"):
            descriptors = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
            inherited += [os.dup(int(fd.name)) for fd in descriptors if fd.readlink() == registry.lab_root("own")]
        for descriptor in inherited:
            stack.callback(os.close, descriptor)
        assert len(inherited) >= 3
        registry.remove("own")


HEIR = """
import os, signal, sys, time
from lab.node import registry
with registry.lock_shared(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_has_a_lock_from_a_process_that_was_killed_is_named(name: str) -> None:
    Node.up(NodeSpec(name, pods=0))
    killed = subprocess.run([sys.executable, "-c", HEIR, name], cwd=ROOT, stdout=PIPE, text=True, check=False)
    child = int(killed.stdout)
    try:
        with pytest.raises(LabBusy, match=rf"in use by process {child} "):
            registry.remove(name)
    finally:
        os.kill(child, signal.SIGKILL)


def test_remove_all_passes_over_what_others_have_removed(empty_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Node.up(NodeSpec("first", pods=0))
    Node.up(NodeSpec("second", pods=0))
    listed = registry.list_labs()
    registry.remove("first")
    with monkeypatch.context() as patched:
        patched.setattr(registry, "list_labs", lambda: listed)
        assert registry.remove_all() == (("second",), None)


@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o700), (0, 0o777), (0, 0o770)])
def test_directory_that_others_may_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, mode: int
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "demo").mkdir()
    marks.add(run / "demo")
    run.chmod(mode)
    os.chown(run, owner, owner)
    monkeypatch.setenv(registry.RUN_VARIABLE, str(run))
    descriptors = len(os.listdir("/proc/self/fd"))
    for attempt in (
        registry.list_labs,
        lambda: registry.remove("demo"),
        lambda: Node.up(NodeSpec("other", pods=0)),
        lambda: Node.open("demo"),
    ):
        with pytest.raises(UnsafeRun, match=rf"{run} holds labs, but others may change it \(owner {owner}, "):
            attempt()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert sorted(os.listdir(run)) == [".demo.lab", "demo"]


def test_link_among_the_namespaces_is_not_followed(empty_run: Path) -> None:
    """Whoever lives in the namespace that a link leads to is no inhabitant of the lab."""
    node = Node.up(NodeSpec("demo", pods=0))
    inside = start(["unshare", "--net", sys.executable, "-c", SLEEPER])
    with inside:
        assert inside.stdout is not None
        inside.stdout.readline()
        (node.root / "ns" / "link").symlink_to(f"/proc/{inside.pid}/ns/net")
        registry.remove("demo")
        assert inside.poll() is None
        inside.kill()


def test_the_directory_of_labs_may_be_named_by_a_link(
    empty_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(empty_run)
    monkeypatch.setenv(registry.RUN_VARIABLE, str(link))
    assert registry.list_labs() == ()
    node = Node.up(NodeSpec("demo", pods=0))
    assert node.root == empty_run / "demo"
    assert status("demo").status is Status.UP
    registry.remove("demo")
    assert link.is_symlink()
    assert not empty_run.exists()


def test_link_in_the_place_of_a_lab_is_none(empty_run: Path, tmp_path: Path) -> None:
    Node.up(NodeSpec("other", pods=0))
    (empty_run / "demo").symlink_to(tmp_path)
    marks.add(empty_run / "demo")
    with pytest.raises(NotALab):
        registry.remove("demo")
    assert [lab.name for lab in registry.list_labs()] == ["other"]
    (empty_run / "demo").unlink()


def test_only_the_mark_tells_the_members_of_a_cluster(empty_run: Path) -> None:
    """A lab that is merely called like a node is none: one made elsewhere, or one whose node.json cannot be read."""
    with Popen(
        ["unshare", "--mount", sys.executable, "-c", MADE_ELSEWHERE, "demo-3"],
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (Node.up(NodeSpec("demo-7", pods=0)).root / FACTS).write_text("{")
        assert registry.members("demo") == ()
        one, two = build(cluster_specs("demo", 2, pods=0))
        assert registry.members("demo") == registry.labs_of("demo") == (one.name, two.name)
        assert [node.name for node in one.peers] == [two.name]
        registry.remove("demo-3", force=True)
        process.kill()


def test_no_lab_is_called_as_a_cluster_is(empty_run: Path) -> None:
    """`down demo` would remove the one or the other."""
    one, two = build(cluster_specs("demo", 2, pods=0))
    with pytest.raises(NameTaken, match=rf"^a cluster demo, of {one.name}, {two.name}, exists already; .* down demo$"):
        registry.check_name("demo", "")
    registry.check_name("demo-3", "demo")


def test_no_cluster_is_called_as_a_lab_is(empty_run: Path) -> None:
    Node.up(NodeSpec("demo", pods=0))
    with pytest.raises(NameTaken, match=r"^lab demo exists already; .* reloadlab down demo$"):
        registry.check_name("demo-1", "demo")
    registry.check_name("other", "")


def test_member_that_was_made_elsewhere_is_no_peer(empty_run: Path) -> None:
    code = MADE_ELSEWHERE.replace("pods=1", "pods=0, cluster='demo', node_index=2")
    with Popen(
        ["unshare", "--mount", sys.executable, "-c", code, "demo-3"], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        one, two = build(cluster_specs("demo", 2, pods=0))
        assert registry.members("demo") == (one.name, two.name, "demo-3")
        assert [node.name for node in one.peers] == [two.name]
        registry.remove("demo-3", force=True)
        process.kill()

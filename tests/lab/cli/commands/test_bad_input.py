"""Bad input and interruptions, by the real command: one clear line, the right exit code, nothing left, old state alive.

All labs of this file live in a run directory of their own, so that what is left there is what a command left.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import PinPathError, ToolMissing
from datapath.loader import Loader
from lab.agent.agent import Agent
from lab.cli.main import main
from lab.node import registry
from lab.node.node import Node
from lab.system.launch import module_argv
from lab.system.mounts import umount
from lab.system.tools import run
from lab.watch.invariants import Baseline, baseline, check, check_unchanged
from lab.watch.snapshot import take
from tests.exhaustive import EXHAUSTIVE
from tests.lab.labs import NOBODY, ROOT, cli

pytestmark = pytest.mark.privileged

LAB = "box"
PIPELINE = shlex.join(module_argv("lab.loaders.pipeline"))
INTERRUPTED = (130, "reloadlab: interrupted\n")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def refused(self, *words: str, code: int = 1) -> None:
        """Hold the command to one line of error that has these words."""
        assert self.code == code, self.err
        assert self.err.startswith("reloadlab: ")
        assert self.err.count("\n") == 1, self.err
        for word in words:
            assert word in self.err


@pytest.fixture(scope="module")
def run_directory() -> Iterator[Path]:
    path = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.RUN_VARIABLE, str(path))
        yield path
        registry.remove_all(force=True)
        assert not path.exists()


@pytest.fixture(scope="module")
def node(run_directory: Path) -> Node:
    """A node that is up and loaded; every test leaves it in order."""
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    result = call("up", LAB, "--pods", "3")
    assert (result.code, result.err) == (0, "")
    return Node.open(LAB)


@pytest.fixture(autouse=True)
def only_the_node(run_directory: Path, node: Node) -> Iterator[None]:
    """No test leaves another lab, a mount or a process."""
    yield
    assert [path.name for path in run_directory.iterdir() if not path.name.startswith(".")] == [LAB]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    left = [path for path in mounts if path.startswith(f"{run_directory}/") and Path(path).parts[3] != LAB]
    assert left == []


@pytest.fixture
def as_before(node: Node) -> Iterator[None]:
    """The reload changes nothing of the node."""
    before = take(node)
    yield
    assert check_unchanged(before, take(node)) == []


@pytest.fixture
def in_order(node: Node) -> Iterator[None]:
    """What was reloaded is entirely new, the rest entirely old, and all invariants hold."""
    agent = Agent(node)
    before: Baseline = baseline(agent)
    yield
    assert check(agent, before) == []


@contextmanager
def started(*argv: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a shell does, in a process group of its own; at the end nothing of its session may live."""
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"} | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        assert session_members(process.pid) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def session_members(session: int) -> list[str]:
    """Return the command lines of the processes of a session; a killed child may still be about to end."""
    deadline = time.monotonic() + 2
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            # It may end meanwhile.
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(path.with_name("cmdline").read_text().replace("\0", " "))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def call(*argv: str, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Result:
    with started(*prefix, *cli(*argv), env=env) as process:
        out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def answered(capfd: pytest.CaptureFixture[str], arguments: str) -> Result:
    """Return what a command answers in this process: a new one takes longer to start than to refuse."""
    code = main(arguments.split())
    out, err = capfd.readouterr()
    return Result(code, out, err)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def interrupted(number: signal.Signals, condition: Callable[[int], bool], *argv: str) -> tuple[int, str]:
    """Start a command, send the signal once the condition holds for its id, and return (exit code, what it said)."""
    with started(*cli(*argv)) as process:
        await_true(lambda: process.poll() is not None or condition(process.pid))
        assert process.poll() is None, process.communicate()
        # Ctrl-C goes to everything that runs in the terminal, kill(1) to one process.
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        try:
            _, err = process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            # Where it hangs: the traceback of every thread.
            process.send_signal(signal.SIGABRT)
            _, err = process.communicate(timeout=5)
    return process.returncode, err


def generation(node: Node) -> int:
    return int((node.root / registry.STATE / "generation").read_text() or "0")


def reloading(node: Node, loads: int = 5) -> Callable[[int], bool]:
    """Return a condition: so many more reloads have begun than now."""
    wanted = generation(node) + loads
    return lambda _: generation(node) >= wanted


def many(node: Node) -> list[str]:
    """Return the pods again and again: about a second of reloads."""
    return [f"{LAB}/{pod.name}" for pod in node.pods] * 150


def compiling(node: Node) -> bool:
    """Tell whether clang is at work."""
    return any(path.is_dir() for path in (node.root / registry.STATE / "templates").glob("*/.*"))


# What the user got wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("upp", "no command upp; did you mean up?; see: reloadlab --help"),
        ("--bogus", "unknown --bogus; see: reloadlab --help"),
        ("up --bogus", "unknown --bogus; see: reloadlab up --help"),
        ("up --endpoint-route", "unknown --endpoint-route; did you mean --endpoint-routes?; see: reloadlab up --help"),
        ("bench traffic --round 3", "unknown --round; did you mean --rounds?; see: reloadlab bench traffic --help"),
        ("reload box --parallel 2", "unknown --parallel: it is --workers; see: reloadlab reload --help"),
        ("run -n 2", "unknown -n: it is --workers; see: reloadlab run --help"),
        ("monitor box --from pod-1", "unknown --from: name the endpoint with its lab: monitor demo/pod-1"),
        ("show box other", "unexpected argument other; see: reloadlab show --help"),
        ("maps box ipcahe", "argument MAP: no ipcahe; did you mean ipcache?; see: reloadlab maps --help"),
        ("bench trafic", "argument WHAT: no trafic; did you mean traffic?; see: reloadlab bench --help"),
        ("monitor box --type events", "argument --type: no events; it is drop, trace, policy-verdict"),
        ("completion tcsh", "argument SHELL: no tcsh; it is bash, zsh, fish"),
        ("up --pod web:app", "'app' of web:app is not a label: KEY=VALUE, such as app=web"),
        ("up --pod Web", "invalid pod name 'Web'"),
        ("reload", "required: LAB[/ENDPOINT]"),
        ("reload box --workers 0", "--workers: '0' is not a whole number of at least 1"),
        ("reload box --workers two", "--workers: 'two' is not a whole number of at least 1"),
        ("reload box --verifiers -1", "--verifiers"),
        ("reload box --filter-priority 65536", "'65536' is not a whole number from 1 to 65535"),
        ("reload box --attach tcy", "argument --attach: no tcy; it is tc, tcx, auto"),
        ("up --xdp fast", "argument --xdp: no fast; it is native, generic, best-effort"),
        ("up --datapath-mode netkit-l3", "argument --datapath-mode: no netkit-l3; did you mean netkit-l2?"),
        ("up --datapath-mode netkit-l2 --endpoint-routes", "pods with netkit devices have no endpoint routes"),
        ("reload box -D a-b=1", "'a-b' is not the name of a macro"),
        ("up --pods many", "--pods: 'many' is not a whole number"),
        ("bench", "required: WHAT"),
        ("bench reload --rounds 0", "--rounds: '0' is not a whole number of at least 1"),
        ("run --workers none", "--workers: 'none' is not a whole number of at least 1"),
        ("run --rounds -1", "--rounds"),
        ("plan box/", "invalid target 'box/'"),
        ("reload a/b/c", "invalid target 'a/b/c'"),
        ("reload .. box", "invalid lab name '..'"),
        ("show box/pod-1", "invalid lab name 'box/pod-1'"),
        ("down box/pod-1", "invalid lab name 'box/pod-1'"),
        ("maps box policy pod-1", "name the endpoint with its lab: reloadlab maps box/pod-1 policy"),
        ("policy box/pod-1 --clear", "policies are those of a whole lab: name no endpoint"),
        ("up box --name box", "two names for one lab: box and box"),
        ("reload box/pod-1 --endpoint-routes", "name no endpoints"),
        ("reload box --library /tmp", "/tmp holds no bpf_lxc.c"),
        ("up other --library /tmp", "/tmp holds no bpf_lxc.c"),
        ("run --library /tmp", "/tmp holds no bpf_lxc.c"),
        ("bench reload --library /tmp", "/tmp holds no bpf_lxc.c"),
        ("bench traffic --library /tmp", "/tmp holds no bpf_lxc.c"),
        ("up other --devices eth0,a/b", "invalid interface name 'a/b'"),
        ("run no-such-suite", "no-such-suite: no such file or directory"),
        ("down", "down takes the names of labs, or --all"),
        ("up other --mtu 10", "the MTU is 1280 to 65520 bytes, not 10"),
        ("run --reschedule", "--reschedule is for scenarios on other machines"),
        ("prove nosuch", "no subject nosuch: there are host, health, pod-1, pod-2"),
        ("faults overlay", "no subject overlay: it takes --tunnel"),
        ("prove xdp", "no subject xdp: it takes --xdp MODE"),
        ("prove --two a b c", "--two takes one SUBJECT, which is reloaded twice, or two"),
        ("faults --kill --errno ENOMEM", "--kill means kills alone"),
        ("faults --life nosuch", "no stage nosuch in the life of a node"),
        ("bench ab own foo", "foo"),
        ("bench reload --object x.o -D X", "--object is compiled already: without -D"),
        ("run --rounds -1", "--rounds: '-1' is not a whole number of at least 0"),
        ("prefilter box --deny 192.0.2.1/24", "is not a prefix such as"),
        ("bench gates --pods 2", "unknown --pods; did you mean --rounds?; see: reloadlab bench gates --help"),
        ("vm ls --cpus 2", "unknown --cpus; see: reloadlab vm ls --help"),
        ("bench --json traffic", "--json follows its command: reloadlab bench traffic --json"),
        (
            "reload box --json demo2",
            "unexpected argument demo2: name LAB[/ENDPOINT] side by side",
        ),
        ("exec", "required: LAB[/ENDPOINT]; see"),
        ("run -x", "unknown -x: options of pytest follow --, as in reloadlab run -- -x"),
        ("run --lf", "unknown --lf: options of pytest follow --"),
        (
            "vm exec 6.12 uname -r",
            "unexpected argument uname -r: the command follows --, as in reloadlab vm exec",
        ),
        ("reload box --loader ./typo", "no loader ./typo: "),
        ("run --kernel-cpus 2", "--kernel-cpus and --kernel-silence are for --kernel"),
        ("run --kernel 6.12 --keep", "--keep has no use with --kernel"),
        ("run --junitxml .", "--junitxml: '.' names no file"),
        ("verify file.o -D X", "-D and --clang are for a C file, and file.o is none"),
        ("corpus --seed 1", "--seed draws another sample: with --sample"),
        ("run -k not", "-k: 'not' is no expression: expected not OR left parenthesis"),
    ],
)
@pytest.mark.usefixtures("as_before")
def test_wrong_call(capfd: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    """In this process; that every command can be started by itself is tested in test_main.py."""
    answered(capfd, arguments).refused(words, code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("reload box/pod-9", "lab box has no endpoint pod-9; it has host, health, pod-1, pod-2, pod-3"),
        ("reload box/overlay", "lab box has no endpoint overlay; it has host, health"),
        ("plan box/pod-9", "lab box has no endpoint pod-9; it has host, health, pod-1, pod-2, pod-3"),
        ("reload box pod-1", "no lab pod-1; an endpoint is named with its lab: box/pod-1"),
        ("plan box host", "no lab host; an endpoint is named with its lab: box/host"),
        ("reload bax", "no lab bax; did you mean box?"),
        ("ls bax", "no lab bax; did you mean box?"),
        ("reload no-such", "no lab no-such; the labs are: box"),
        ("plan no-such/pod-1", "no lab no-such; the labs are: box"),
        ("reload box --clang no-such-clang", "no-such-clang not found"),
        ("up box", "lab box exists already; to remove it: reloadlab down box"),
        ("verify no-such.c", "No such file or directory"),
    ],
)
@pytest.mark.usefixtures("as_before")
def test_what_is_not_there(capfd: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    answered(capfd, arguments).refused(words)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ("run --library /tmp", "/tmp holds no bpf_lxc.c", 2),
        ("run no-such-suite", "no-such-suite: no such file or directory", 2),
        ("bench reload --library /tmp", "/tmp holds no bpf_lxc.c", 2),
        ("bench traffic --library /tmp", "/tmp holds no bpf_lxc.c", 2),
        ("reload box/pod-9", "lab box has no endpoint pod-9; it has host, health, pod-1, pod-2, pod-3", 1),
    ],
)
@pytest.mark.usefixtures("as_before")
def test_wrong_calls_of_the_real_command(arguments: str, words: str, code: int) -> None:
    call(*arguments.split()).refused(words, code=code)


def test_no_command_prints_the_help() -> None:
    result = call()
    assert result.code == 0
    assert "usage: reloadlab" in result.out
    assert call("--version").out == "reloadlab 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "plan box/pod-1",
        "reload box",
        "verify bpf/bpf_lxc.c",
        "bench topology",
        "prove",
        "prove --two",
        "faults",
        "faults --life",
        "run",
    ],
)
def test_not_root(arguments: str) -> None:
    call(*arguments.split(), prefix=NOBODY).refused("missing root: user 65534 is not root; run it as root")


def test_doctor_names_what_is_missing() -> None:
    result = call("doctor", prefix=NOBODY)
    assert (result.code, result.err) == (1, "")
    assert "missing root: user 65534 is not root" in " ".join(result.out.split())


@pytest.mark.parametrize("arguments", ["reload box", "up other", "bench reload"])
@pytest.mark.usefixtures("as_before")
def test_no_clang(arguments: str) -> None:
    env = {"PATH": "/nowhere", "RELOADLAB_CLANG": ""}
    call(*arguments.split(), env=env).refused("missing clang: clang not found; apt-get install clang-16")


# What the compiler, the reader of objects and the verifier refuse


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of our C sources, to be spoilt."""
    return Path(shutil.copytree(ROOT / "bpf", tmp_path / "bpf"))


@pytest.mark.usefixtures("as_before")
def test_macro_that_breaks_the_source() -> None:
    result = call("reload", LAB, "-D", "ETH_P_IP=(")
    result.refused("failed to compile bpf_host.o: ")
    assert re.search(r"/if_ether\.h:\d+:\d+: error: ", result.err)


@pytest.mark.usefixtures("as_before")
def test_source_that_does_not_compile(library: Path) -> None:
    source = library / "bpf_lxc.c"
    source.write_text(source.read_text() + "int broken(void) { return nothing; }\n")
    number = len(source.read_text().splitlines())
    place = f"{source}:{number}:27: error: use of undeclared identifier 'nothing'"
    call("reload", f"{LAB}/pod-1", "--library", str(library)).refused(f"pod-1: failed to compile bpf_lxc.o: {place}")
    # The node of a first reload that fails goes, too.
    call("up", "other", "--pods", "1", "--library", str(library)).refused(place, "lab other is gone again")
    cluster = ("up", "several", "--nodes", "2", "--pods", "1", "--library", str(library))
    call(*cluster).refused(place, "lab several is gone again")
    assert registry.members("several") == ()


@pytest.mark.usefixtures("as_before")
def test_library_without_the_wanted_program(library: Path) -> None:
    source = library / "bpf_lxc.c"
    source.write_text(source.read_text().replace("cil_from_container", "cil_something"))
    result = call("reload", f"{LAB}/pod-1", "--library", str(library))
    result.refused("pod-1: bpf_lxc.o: no program cil_from_container found; it has cil_something, ")


@pytest.mark.usefixtures("as_before")
def test_program_that_the_verifier_refuses() -> None:
    result = call("reload", f"{LAB}/pod-1", "-D", "REJECTED_BY_VERIFIER=1")
    result.refused(
        "pod-1: program tail_rejected_by_verifier",
        "refused by the verifier: ",
        "tailcall.h:",
        "invalid access to packet",
    )


@pytest.mark.usefixtures("as_before")
def test_verifier_refusal_of_several_is_a_line_each() -> None:
    result = call("reload", LAB, "--workers", "2", "-D", "REJECTED_BY_VERIFIER=1")
    assert result.code == 1
    lines = result.err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        f"box/{name}" for name in ("host", "health", "pod-1", "pod-2", "pod-3")
    ]
    assert all("refused by the verifier" in line for line in lines)


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no ELF", "not an ELF file"),
        ("truncated", "truncated"),
        ("other architecture", "object of another architecture (ELF machine "),
        ("missing", "No such file or directory"),
        ("directory", "Is a directory"),
        ("empty", "not an ELF file"),
    ],
)
def test_object_that_is_none(command: str, kind: str, words: str, node: Node, tmp_path: Path) -> None:
    path = tmp_path / "bad.o"
    if kind == "no ELF":
        path.write_text("no object")
    elif kind == "truncated":
        whole = node.root / registry.STATE / str(node.pods[0].endpoint_id) / "bpf_lxc.o"
        path.write_bytes(whole.read_bytes()[:2000])
    elif kind == "other architecture":
        shutil.copy(sys.executable, path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    call(command, str(path)).refused(f"{path}: ", words)


# What the machine does not give


@pytest.mark.usefixtures("as_before")
def test_pins_that_would_not_lie_on_a_bpffs(node: Node, tmp_path: Path) -> None:
    config = replace(node.datapath_config(), bpffs=tmp_path)
    with Loader(config) as loader, pytest.raises(PinPathError, match="is not on a BPF file system"):
        loader.apply(loader.plan(node.endpoint("pod-1"), subject="pod-1"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_lab_whose_bpffs_is_gone() -> None:
    assert call("up", "bare", "--pods", "1", "--no-programs").code == 0
    umount(registry.lab_root("bare") / registry.BPFFS)
    call("reload", "bare/pod-1").refused("is not on a BPF file system: mount one with")
    assert call("down", "bare").code == 0


@pytest.mark.usefixtures("as_before")
def test_full_disk(node: Node) -> None:
    fresh = ("reload", f"{LAB}/pod-1", "-D", f"X{uuid.uuid4().hex}")
    with full(node.root):
        call("reload", f"{LAB}/pod-1").refused("pod-1: lab box: ", "bpf_lxc.o.new: No space left on device")
        call(*fresh).refused("failed to compile bpf_host.o", "No space left on device")
    assert list(node.root.rglob("*.new")) == []


@contextmanager
def full(root: Path) -> Iterator[None]:
    """Shrink a lab's file system to what it holds."""
    usage = shutil.disk_usage(root)
    run(["mount", "-o", f"remount,size={usage.used // 1024}k", str(root)])
    try:
        yield
    finally:
        run(["mount", "-o", f"remount,size={usage.total // 1024}k", str(root)])


def test_output_that_cannot_be_written(node: Node) -> None:
    source = str(node.root / registry.STATE / str(node.pods[0].endpoint_id) / "bpf_lxc.o")
    for command in (["ls"], ["inspect", source], ["plan", f"{LAB}/pod-1"]):
        with open("/dev/full", "w") as out:
            done = subprocess.run(cli(*command), cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "reloadlab: No space left on device\n")


def test_reader_that_leaves(node: Node) -> None:
    source = str(node.root / registry.STATE / str(node.pods[0].endpoint_id) / "bpf_lxc.o")
    for command in (["ls"], ["inspect", source], ["show", LAB]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(cli(*command), cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")


# Interruptions

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])


@SIGNALS
def test_up_interrupted_at_its_first_reload(number: signal.Signals, run_directory: Path) -> None:
    first = run_directory / "other" / registry.STATE / "templates"
    assert interrupted(number, lambda _: first.exists(), "up", "other", "--pods", "20") == INTERRUPTED


@SIGNALS
@pytest.mark.usefixtures("as_before")
def test_reload_interrupted_while_compiling(number: signal.Signals, node: Node) -> None:
    fresh = f"X{uuid.uuid4().hex}"
    assert interrupted(number, lambda _: compiling(node), "reload", LAB, "-D", fresh) == INTERRUPTED
    assert not compiling(node)


@SIGNALS
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.usefixtures("in_order")
def test_reload_interrupted(number: signal.Signals, workers: int, node: Node) -> None:
    command = ("reload", *many(node), "--workers", str(workers))
    assert interrupted(number, reloading(node), *command) == INTERRUPTED


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.usefixtures("in_order")
def test_reload_after_one_that_was_killed(workers: int, node: Node) -> None:
    command = ("reload", *many(node), "--workers", str(workers))
    assert interrupted(signal.SIGKILL, reloading(node), *command)[0] == -signal.SIGKILL
    assert call("reload", LAB).code == 0


def test_run_interrupted(run_directory: Path, tmp_path: Path) -> None:
    suite = tmp_path / "test_waits.py"
    suite.write_text("import time\n\n\ndef test_waits(scenario):\n    time.sleep(60)\n")
    command = ("run", str(suite), "--workers", "1", "--rounds", "0", "--out", str(tmp_path / "out"))

    def loaded(_: int) -> bool:
        return any(path.parent.parent.name != LAB for path in run_directory.glob("*/state/generation"))

    code, said = INTERRUPTED
    page = f"reloadlab: what there is of the run: {tmp_path}/out/report.html\n"
    assert interrupted(signal.SIGINT, loaded, *command) == (code, page + said)
    document = json.loads((tmp_path / "out" / "run.json").read_text())
    assert document["complete"] is False
    assert [each["outcome"] for each in document["scenarios"]] == ["not run"]


def under_a_filter(session: int) -> bool:
    """Tell whether a process of a session is under a seccomp filter: its calls are gates then.

    A loader has a session of its own; its parent is the lab.
    """
    for path in Path("/proc").glob("[0-9]*/status"):
        # It may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            status = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
            sessions = {os.getsid(int(status[name])) for name in ("Pid", "PPid") if status["Seccomp"] == "2"}
            if session in sessions:
                return True
    return False


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("prove --two pod-1 --pods 1", signal.SIGTERM),
        (f"faults pod-1 --pods 1 --loader {shlex.quote(PIPELINE)}", signal.SIGINT),
        *((("prove pod-1 --pods 1", signal.SIGINT), ("faults --life --pods 1", signal.SIGTERM)) if EXHAUSTIVE else ()),
    ],
)
def test_gates_interrupted(command: str, number: signal.Signals) -> None:
    """While calls are stopped: the reload goes on without gates to its end, and nothing of the node is left."""
    assert interrupted(number, under_a_filter, *shlex.split(command)) == INTERRUPTED


@pytest.mark.parametrize(("what", "number"), [("reload", signal.SIGTERM), ("topology", signal.SIGINT)])
def test_bench_interrupted(what: str, number: signal.Signals, run_directory: Path) -> None:
    def there(pid: int) -> bool:
        # A benchmark has a mount namespace of its own.
        own = Path(f"/proc/{pid}/root{run_directory}")
        return os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt") and any(
            path.name != LAB for path in own.glob("*")
        )

    assert interrupted(number, there, "bench", what, "--pods", "10", "--rounds", "500") == INTERRUPTED

"""A loader's process: where it lives, and what becomes of one that does not do its part."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.endpoint import DatapathConfig
from datapath.errors import Cancelled, ReloadlabError
from lab.gates.seccomp import NoUserNotification
from lab.loaders import process
from lab.loaders.client import LoaderClient
from lab.loaders.command import LoaderCommand
from lab.loaders.protocol import LoaderBroken, LoaderDied, LoaderFailed
from lab.loaders.requests import describe_node
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec
from tests.lab.loaders.living import living_in

HELLO = """read hello; echo '{"ok":true,"name":"mine","supports":["pod"]}'
"""
ASK = {"request": "reload"}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(NodeSpec(f"loaders-{os.getpid()}", pods=1)) as node:
        yield node


def client(node: Node, script: str, *, shell: str = "bash") -> LoaderClient:
    """A loader that is a script."""
    config = node.datapath_config()

    def describe() -> tuple[DatapathConfig, dict[str, object]]:
        return config, describe_node(node, config)

    return LoaderClient(LoaderCommand("script", (shell, "-c", script)), describe)


def test_a_loader_lives_in_the_node(node: Node) -> None:
    script = HELLO + (
        'read r; echo "{\\"ok\\":false,\\"error\\":\\"$(readlink /proc/self/ns/net) $PWD '
        "$(stat -f -c %T /sys/fs/bpf) $(ls /sys/class/net | tr '\\n' ' ')\\\"}\"; read stop"
    )
    with client(node, script) as loader:
        assert (loader.name, loader.greeting.supports) == ("mine", frozenset({"pod"}))
        with pytest.raises(LoaderFailed) as raised:
            loader.ask(ASK)
    words = raised.value.reason.split()
    config = node.datapath_config()
    inode = os.stat(node.netns(NODE)).st_ino
    assert words[:3] == [f"net:[{inode}]", str(config.state), "bpf_fs"]
    assert {"cilium_host", "cilium_net"} <= set(words[3:])
    # Its mounts are its own.
    assert os.stat("/sys/fs/bpf").st_dev != os.stat(config.bpffs).st_dev


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "ended with exit code 3"),
        ("echo no luck >&2; exit 3", "ended with exit code 3: no luck"),
        ("kill -TERM $$; sleep 9", "was killed by SIGTERM"),
        ("exec >&-; sleep 100", "closed its output"),
        ("read h; echo hello; sleep 100", "answered 'hello', which is not JSON"),
        ('read h; echo \'{"ok":false,"error":"no"}\'; sleep 100', "refuses the node: no"),
        ('read h; echo \'{"ok":true,"version":7,"name":"x","supports":[]}\'; sleep 100', "speaks version 7"),
        ("read h; printf '1\\n2\\n' | dd bs=9 iflag=fullblock 2>/dev/null; sleep 100", "answered more than one line"),
        ("read h; yes ok | tr -d '\\n'; sleep 100", "answered more than 1048576 bytes"),
        ("sleep 100", "no answer within 0.3 s"),
        ("echo thinking >&2; sleep 100", "no answer within 0.3 s: thinking"),
        ("yes noise >&2", "no answer within 0.3 s: noise"),
        ("sleep 100 & sleep 100", "no answer within 0.3 s"),
    ],
)
def test_a_bad_loader_is_one_line_and_leaves_nothing(
    node: Node, script: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELOADLAB_LOADER_TIMEOUT", "0.3" if "0.3" in reason else "20")
    if "closed" in reason:
        monkeypatch.setattr(process, "STOP_SECONDS", 0.3)
    with pytest.raises(LoaderBroken) as raised, client(node, script):
        pass
    assert reason in str(raised.value)
    assert str(raised.value).startswith("loader script: ")
    assert len(str(raised.value).splitlines()) == 1
    assert living_in(node.datapath_config().state) == []


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("/no/such/loader",), "/no/such/loader cannot be run: No such file or directory"),
        ((str(Path(__file__)),), f"{__file__} cannot be run: Permission denied"),
        (("/",), "/ cannot be run: Permission denied"),
    ],
)
def test_what_is_no_program_is_named(node: Node, argv: tuple[str, ...], reason: str) -> None:
    config = node.datapath_config()
    loader = LoaderClient(LoaderCommand("none", argv), lambda: (config, describe_node(node, config)))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LoaderBroken) as raised, loader:
        pass
    assert str(raised.value) == f"loader none: {reason}"
    assert len(os.listdir("/proc/self/fd")) == before


def test_why_a_process_cannot_enter_the_node_is_told(node: Node, tmp_path: Path) -> None:
    config = replace(node.datapath_config(), bpffs=tmp_path / "none")
    loader = LoaderClient(LoaderCommand("mine", ("true",)), lambda: (config, describe_node(node, config)))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LoaderBroken) as raised, loader:
        pass
    why = "/sys/fs/bpf: No such file or directory"
    assert str(raised.value) == f"loader mine: its process cannot enter the node: {why}"
    assert len(os.listdir("/proc/self/fd")) == before


def test_why_a_loader_cannot_be_gated_is_told(node: Node) -> None:
    def gate() -> None:
        raise NoUserNotification("no such luck")

    why = "its process cannot enter the node: system calls cannot be gates here: no such luck"
    loader = client(node, HELLO)
    with pytest.raises(LoaderBroken, match=why), loader.gated(gate):
        loader.ask(ASK)


def test_a_file_without_an_interpreter_is_no_program(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "loader"
    path.write_text("nothing")
    path.chmod(0o700)
    config = node.datapath_config()
    loader = LoaderClient(LoaderCommand("none", (str(path),)), lambda: (config, describe_node(node, config)))
    with pytest.raises(LoaderBroken, match="cannot be run: Exec format error"), loader:
        pass


def test_a_closed_log_is_not_looked_at_again(node: Node) -> None:
    """It would be at its end for ever, and the lab would do nothing but look."""
    with client(node, HELLO + "exec 2>&-; read r; sleep 0.8; echo '{\"ok\":true}'; read stop") as loader:
        began, before = time.monotonic(), time.thread_time()
        loader.ask(ASK)
        waited, used = time.monotonic() - began, time.thread_time() - before
    assert used < waited / 8


def test_megabytes_of_log_do_not_hold_it_up(node: Node) -> None:
    script = HELLO + "read r; head -c 3000000 /dev/zero | tr '\\0' x >&2; echo; echo '{\"ok\":true}'; read stop"
    with client(node, script.replace("echo; ", "")) as loader:
        loader.ask(ASK)


def test_an_answer_that_nobody_asked_for_is_refused(node: Node) -> None:
    mark = node.datapath_config().state / "said"
    script = HELLO + f"read a; echo '{{\"ok\":true}}'; sleep 0.1; echo '{{\"ok\":true}}'; touch {mark}; read b; read c"
    with client(node, script) as loader:
        loader.ask(ASK)
        while not mark.exists():
            time.sleep(0.01)
        with pytest.raises(LoaderBroken, match="without being asked"):
            loader.ask(ASK)
    mark.unlink()


def test_a_broken_loader_is_started_anew_for_the_next_request(node: Node) -> None:
    mark = node.datapath_config().state / "second"
    script = HELLO + f"read r; if [ -e {mark} ]; then echo '{{\"ok\":true}}'; read s; fi; touch {mark}; exit 1"
    with client(node, script) as loader:
        first = loader.pid
        with pytest.raises(LoaderDied, match="exit code 1"):
            loader.ask(ASK)
        assert loader.pid == 0
        loader.ask(ASK)
        assert loader.pid not in (0, first)
    mark.unlink()


def test_a_loader_that_ends_by_itself_between_requests_is_told(node: Node) -> None:
    with client(node, HELLO + "echo no config >&2; exit 4") as loader:
        while not Path(f"/proc/{loader.pid}/stat").read_text().rpartition(")")[2].startswith(" Z"):
            time.sleep(0.01)
        with pytest.raises(LoaderDied, match="ended between two requests with exit code 4: no config"):
            loader.ask(ASK)


def test_a_loader_survives_the_end_of_the_thread_that_started_it(node: Node) -> None:
    """The kernel kills what such a thread has started with PR_SET_PDEATHSIG."""
    script = HELLO + "while read r; do echo '{\"ok\":true}'; done"
    loader = client(node, script)
    thread = threading.Thread(target=loader.__enter__)
    thread.start()
    thread.join()
    try:
        loader.ask(ASK)
        loader.ask(ASK)
    finally:
        loader.__exit__(None, None, None)


@pytest.mark.parametrize("child", ["sleep 100", "setsid sleep 100", "setsid sh -c 'setsid sleep 100 &'"])
def test_children_that_are_left_are_killed_and_told(node: Node, child: str) -> None:
    """Those as well that have a session of their own, and another parent by now."""
    script = HELLO + f"{child} & read stop"
    with (
        pytest.raises(LoaderBroken, match=r"left processes behind, which were killed: [0-9, ]+$"),
        client(node, script),
    ):
        pass
    assert living_in(node.datapath_config().state) == []


def test_what_a_loader_of_a_killed_lab_has_started_goes_with_the_node() -> None:
    """The kernel kills the loader with the process that has started it, and no more than that."""
    spec = NodeSpec(f"loaders-killed-{os.getpid()}", pods=0)
    node = Node.up(spec)
    state = node.datapath_config().state
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with client(node, "sleep 1000 & " + HELLO + "sleep 1000") as loader:
            os.write(writer, str(loader.pid).encode())
            time.sleep(1000)
        os._exit(1)
    leader = int(os.read(reader, 16))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while leader in (left := living_in(state)):
        time.sleep(0.01)
    assert left
    registry.remove(spec.name, force=True)
    assert [pid for pid in left if os.path.exists(f"/proc/{pid}/cwd")] == []
    os.close(reader)
    os.close(writer)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a loader that does not end waited for so long that one would have ended."""
    monkeypatch.setattr(process, "STOP_SECONDS", 0.5)


CANCELLABLE = HELLO.replace('"pod"', '"cancel"')
UNDO = 'trap \'echo "{\\"ok\\":false,\\"error\\":\\"undone\\"}"\' TERM; '


def test_children_that_a_cancelled_loader_leaves_are_told(node: Node) -> None:
    cancel = threading.Event()
    with client(node, CANCELLABLE + UNDO + "read r; sleep 100 & wait $!; read stop") as loader:
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Cancelled, match=r"cancelled: undone; left processes behind, which were killed: [0-9]+$"):
            loader.ask(ASK, cancel=cancel)
    assert living_in(node.datapath_config().state) == []


def test_a_reload_that_was_done_in_spite_of_its_cancellation_tells_of_children(node: Node) -> None:
    cancel = threading.Event()
    cancel.set()
    script = "trap '' TERM; " + CANCELLABLE + "read r; sleep 100 & echo '{\"ok\":true}'; read stop"
    with client(node, script) as loader:
        (warning,) = loader.ask(ASK, cancel=cancel).warnings
    assert warning.startswith("loader mine left processes behind, which were killed: ")


def test_children_of_a_loader_that_does_not_know_the_node_are_told(node: Node) -> None:
    """The one that takes its place knows nothing of them."""
    config = node.datapath_config()
    values = describe_node(node, config)
    script = HELLO + "case $hello in *1400*) ;; *) sleep 100 & esac; read r; echo '{\"ok\":true}'; read stop"
    command = LoaderCommand("script", ("bash", "-c", script))
    with LoaderClient(command, lambda: (config, dict(values))) as loader:
        values["mtu"] = 1400
        with pytest.raises(LoaderBroken, match="left processes behind"):
            loader.ask(ASK)
        loader.ask(ASK)


def test_children_of_a_loader_under_gates_are_told(node: Node) -> None:
    with client(node, HELLO + "read r; echo '{\"ok\":true}'; read stop") as loader:
        with loader.gated(lambda: None):
            loader.ask(ASK)
        other = client(node, HELLO + "sleep 100 & read r; echo '{\"ok\":true}'; read stop")
        with pytest.raises(LoaderBroken, match="left processes behind"), other.gated(lambda: None):
            other.ask(ASK)
    assert living_in(node.datapath_config().state) == []


LARGE = {"request": "reload", "slots": ["x" * 100] * 4000}
"""More than a pipe holds."""


def test_a_loader_that_does_not_read_is_waited_for_no_longer_than_one_that_does_not_answer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELOADLAB_LOADER_TIMEOUT", "0.5")
    with client(node, HELLO + "sleep 100") as loader, pytest.raises(LoaderBroken, match=r"no answer within 0\.5 s"):
        loader.ask(LARGE)


@pytest.mark.usefixtures("impatient")
def test_a_loader_that_does_not_read_can_be_cancelled(node: Node) -> None:
    cancel = threading.Event()
    with client(node, HELLO + "sleep 100") as loader:
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Cancelled, match=r"did not end within [\d.]+ s"):
            loader.ask(LARGE, cancel=cancel)


def test_a_large_request_is_read_while_the_loader_writes_its_log(node: Node) -> None:
    script = HELLO + "head -c 1000000 /dev/zero >&2; read r; echo '{\"ok\":true}'; read stop"
    with client(node, script) as loader:
        loader.ask(LARGE)


def test_an_answer_before_the_request_was_read_is_refused(node: Node) -> None:
    script = HELLO + "head -c 1000 >/dev/null; echo '{\"ok\":true}'; sleep 100"
    with client(node, script) as loader, pytest.raises(LoaderBroken, match="answered before it had read the request"):
        loader.ask(LARGE)


def test_a_process_whose_name_is_no_text_does_not_matter(node: Node) -> None:
    """Any user can have one."""
    name = Path("/proc/self/comm")
    before = name.read_bytes().rstrip()
    name.write_bytes(b") \xff")
    try:
        with client(node, HELLO + "read stop"):
            pass
    finally:
        name.write_bytes(before)


@pytest.mark.usefixtures("impatient")
def test_who_is_cancelled_and_does_not_end_is_killed(node: Node) -> None:
    cancel = threading.Event()
    with client(node, HELLO + "read r; sleep 100") as loader:
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Cancelled, match=r"loader mine did not end within [\d.]+ s, and was killed"):
            loader.ask(ASK, cancel=cancel)
    assert living_in(node.datapath_config().state) == []


def test_who_can_be_cancelled_is_told(node: Node) -> None:
    script = CANCELLABLE + UNDO + "read r; sleep 100 & wait; kill $!; read stop"
    cancel = threading.Event()
    with client(node, script) as loader:
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Cancelled, match="cancelled: undone"):
            loader.ask(ASK, cancel=cancel)


def test_ctrl_c_ends_a_loader_that_hangs(node: Node) -> None:
    with client(node, HELLO + "read r; sleep 100") as loader:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            loader.ask(ASK)
    assert living_in(node.datapath_config().state) == []


def test_a_loader_hears_of_a_changed_node(node: Node) -> None:
    config = node.datapath_config()
    values = describe_node(node, config)
    command = LoaderCommand("script", ("bash", "-c", HELLO + "while read r; do echo '{\"ok\":true}'; done"))
    with LoaderClient(command, lambda: (config, dict(values))) as loader:
        first = loader.pid
        loader.ask(ASK)
        assert loader.pid == first
        values["mtu"] = 1400
        loader.ask(ASK)
        assert loader.pid != first


def test_errors_go_from_process_to_process() -> None:
    import pickle

    for error in (LoaderDied("mine", "was killed", killed=True), LoaderFailed("mine", "no")):
        copy = pickle.loads(pickle.dumps(error))
        assert isinstance(copy, ReloadlabError)
        assert (str(copy), vars(copy)) == (str(error), vars(error))

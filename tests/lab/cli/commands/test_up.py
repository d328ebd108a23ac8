from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cli.main import main
from lab.errors import Status
from lab.node import registry
from lab.node.node import Node
from tests.lab.labs import NOBODY, cli, mounts_of, removed, start, unique_name


@pytest.fixture
def name() -> Iterator[str]:
    with removed(unique_name()) as name:
        yield name


@pytest.mark.privileged
def test_options_reach_the_node(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--pods 1 --endpoint-routes --tunnel --mtu 1400 --devices eth0"
    assert main(["up", name, *options.split()]) == 0
    spec = Node.open(name).spec
    assert len(spec.pod_specs) == 1
    assert (spec.endpoint_routes, spec.tunnel, spec.mtu, spec.devices) == (True, True, 1400, ("eth0",))
    out = capsys.readouterr().out
    assert f"{name} is up: 1 pod, " in out
    assert f"reloadlab exec {name}/pod-1 -- ping -c 3 {spec.outside4.ip}\n" in out
    assert main(["up", name]) == 1
    assert capsys.readouterr().err == (f"reloadlab: lab {name} exists already; to remove it: reloadlab down {name}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a/b"], "invalid lab name 'a/b'"),
        ([".."], "invalid lab name '..'"),
        (["x" * 40], "at most 32"),
        (["--pods", "-1"], "0 to 4000 pods"),
        (["--pods", "1000000000", "--pod", "web"], "0 to 4000 pods, not 1000000000"),
        (["--pods", "-3", "--pod", "web"], "0 to 4000 pods, not -3"),
        (["--nodes", "0"], "1 to 16 nodes"),
        (["--mtu", "60"], "1280 to 65520"),
        (["--devices", "eth0,a/b"], "invalid interface name 'a/b'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.privileged
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_half_way(name: str, number: signal.Signals) -> None:
    with start(cli("up", name, "--pods", "1000")) as process:
        await_path(registry.lab_root(name) / "ns" / "pod-20")
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "reloadlab: interrupted\n")
    assert not registry.lab_root(name).exists()
    assert mounts_of(name) == []


@pytest.mark.privileged
def test_lab_outlives_the_command(name: str) -> None:
    with start(cli("up", name, "--pods", "1")) as process:
        assert process.communicate(timeout=30)[1] == ""
    assert os.path.ismount(Node.open(name).netns("pod-1"))
    (lab,) = [lab for lab in registry.list_labs() if lab.name == name]
    assert (lab.status, lab.pids) == (Status.UP, ())


@pytest.mark.privileged
@pytest.mark.parametrize("command", ["up", "ls", "down --all", "show demo", "exec demo/pod-1 -- true"])
def test_needs_root(command: str) -> None:
    with start([*NOBODY, *cli(*command.split())]) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "root" in err
    assert err.count("\n") == 1


def await_path(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not os.path.lexists(path):
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.001)


@pytest.mark.privileged
def test_two_nodes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = name[:29]
    try:
        assert main(["up", name, "--nodes", "2", "--pods", "1", "--tunnel"]) == 0
        out = capsys.readouterr().out
        for node in (f"{name}-1", f"{name}-2"):
            assert f"{node} is up: 1 pod, " in out
        assert f"reloadlab down {name}\n" in out
        ping = f"exec {name}-1/pod-1 -- ping -c 3 {Node.open(f'{name}-2').pods[0].ipv4}"
        assert f"reloadlab {ping}\n" in out
        with start(cli(*ping.replace("-c 3", "-c 1 -W 5").split())) as process:
            out, _ = process.communicate(timeout=30)
        assert " 0% packet loss" in out
        assert main(["show", f"{name}-1", "--json"]) == 0
        (document,) = json.loads(capsys.readouterr().out)
        assert (document["cluster"], document["peers"]) == (name, [f"{name}-2"])
        assert [(pod["name"], pod["ipv4"], pod["ipv6"]) for pod in document["pods"]] == [
            ("pod-1", "10.244.0.3", "fd00:10:244::3")
        ]
    finally:
        assert main(["down", name]) == 0
    assert capsys.readouterr().out == f"{name}-1 is gone\n{name}-2 is gone\n"
    assert registry.members(name) == ()
    assert main(["down", name]) == 1


TWO = ["--nodes", "2", "--pods", "20", "--tunnel"]
IN_FIRST, IN_SECOND, AT_SYNC = (1, "ns/pod-5"), (2, "ns/pod-5"), (2, "state/templates")
AT_RELOAD, AT_SECOND_RELOAD = (1, "state/generation"), (2, "state/generation")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(signal.SIGINT, IN_FIRST, id="Ctrl-C-first node"),
        pytest.param(signal.SIGINT, IN_SECOND, id="Ctrl-C-second node"),
        pytest.param(signal.SIGINT, AT_SYNC, id="Ctrl-C-first sync"),
        pytest.param(signal.SIGINT, AT_RELOAD, id="Ctrl-C-first reload"),
        pytest.param(signal.SIGINT, AT_SECOND_RELOAD, id="Ctrl-C-reload of the second"),
        pytest.param(signal.SIGKILL, IN_SECOND, id="killed-second node"),
        pytest.param(signal.SIGKILL, AT_RELOAD, id="killed-first reload"),
    ],
)
def test_two_nodes_interrupted(name: str, number: signal.Signals, moment: tuple[int, str]) -> None:
    """Ctrl-C leaves no node, whichever was in the making; what a killed process leaves goes by the cluster's name."""
    name = name[:29]
    try:
        with start(cli("up", name, *TWO)) as process:
            await_path(registry.lab_root(f"{name}-{moment[0]}") / moment[1])
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        if number is signal.SIGINT:
            assert (process.returncode, err) == (130, "reloadlab: interrupted\n")
            assert registry.members(name) == ()
        else:
            assert main(["down", name]) == 0
        for member in (f"{name}-1", f"{name}-2"):
            assert not registry.lab_root(member).exists()
            assert mounts_of(member) == []
    finally:
        for member in registry.members(name):
            registry.remove(member, force=True)

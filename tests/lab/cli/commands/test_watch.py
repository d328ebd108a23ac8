"""`reloadlab watch` by the real command: one picture, lines of JSON, a terminal, and a lab that goes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from lab.cli.main import main
from lab.node import registry
from tests.lab.cli.commands.test_run import read_until
from tests.lab.labs import ROOT, cli, removed, start, unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    with removed(unique_name()) as name:
        assert main(["up", name, "--pods", "1"]) == 0
        yield name


def test_one_picture_has_a_line_for_each_hook(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["watch", lab, "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{lab}  \d\d:\d\d:\d\d\.\d{{3}}  load \d+  forwarded \d+ in all, dropped 0 in all", lines[0])
    assert re.fullmatch(r"  last reload: \S+, generation \d+, [\d:.]+", lines[1])
    (pod,) = [line.split() for line in lines if " pod-1 " in line]
    assert pod[1:7] == ["pod-1", "-", "-", "-", "ingress", "cil_from_container"]
    assert pod[8].isdecimal()
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nosuch"], 1, "no lab nosuch"),
        (["nosuch/pod-1"], 2, "the command takes a whole lab"),
        (["nosuch", "--interval", "0"], 2, "'0' is not a number of seconds from 0.05 to 86400"),
        (["nosuch", "--interval", "nan"], 2, "'nan' is not a number of seconds"),
        (["nosuch", "--once", "--interval", "2"], 2, "--interval is the time between two looks: --once is one"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_terminal_shows_reloads_in_place_and_is_clean_after_ctrl_c(lab: str) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        cli("watch", lab, "--interval", "0.1"), cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    try:
        said = read_until(controller, "forwarded 0/s")
        assert main(["reload", f"{lab}/pod-1"]) == 0
        said += read_until(controller, "reload of pod-1, generation")
        process.send_signal(signal.SIGINT)
        said += read_until(controller, "interrupted")
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert "Traceback" not in said
    assert said.rindex("\x1b[?25l") < said.rindex("\x1b[?25h")


def test_lines_of_json_until_the_lab_goes(lab: str) -> None:
    """The last test of the module: looks keep nobody from removing the lab."""
    with start(cli("watch", lab, "--interval", "0.1", "--json")) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert main(["reload", f"{lab}/pod-1"]) == 0
        reloads: list[dict[str, object]] = []
        while not reloads:
            reloads = json.loads(process.stdout.readline())["reloads"]
        registry.remove(lab)
        out, err = process.communicate(timeout=60)
    assert (first["lab"], first["seconds"], first["reloads"]) == (lab, None, [])
    assert [each["subject"] for each in reloads] == ["pod-1"]
    assert process.returncode == 1
    assert re.fullmatch(rf"reloadlab: no lab {lab}[^\n]*\n", err)
    assert all(json.loads(line)["lab"] == lab for line in out.splitlines())

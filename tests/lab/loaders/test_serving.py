"""Loaders of ours answer every request, whatever is wrong with it."""

from __future__ import annotations

import json
import subprocess

import pytest

from lab.system.launch import module_argv

ENDPOINT: dict[str, object] = {
    "id": "../..",
    "mac": "",
    "node_mac": "",
    "ipv4": None,
    "ipv6": None,
    "identity": 1,
    "labels": [],
}
UNLOAD = {"request": "unload", "interface": "lo", "ifindex": 1, "endpoint": ENDPOINT, "endpoint_routes": False}


def answers(module: str, *lines: bytes) -> list[dict[str, object]]:
    """Return what a loader answers; it ends when there is no more to read, and says nothing else."""
    argv = module_argv(module)
    done = subprocess.run(
        argv, input=b"".join(line + b"\n" for line in lines), capture_output=True, timeout=60, check=True
    )
    assert done.stderr == b""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("module", ["lab.loaders.pipeline", "lab.loaders.tc"])
@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"x", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", 'no object with "request"'),
        (b'{"request": "dance"}', "unknown request dance"),
        (b'{"request": "hello", "version": 1}', "the request has no 'node'"),
        (b'{"request": "hello", "version": 1, "node": 1}', "the request is wrong: "),
        (b'{"request": "unload"}', "the request has no "),
    ],
)
def test_a_wrong_request_is_answered(module: str, line: bytes, error: str) -> None:
    first, second = answers(module, line, line)
    assert first == second
    assert first["ok"] is False
    assert error in str(first["error"])


@pytest.mark.parametrize("module", ["lab.loaders.pipeline", "lab.loaders.tc"])
def test_stop_ends_it(module: str) -> None:
    assert answers(module, b'{"request": "stop"}', b"x") == []


def test_the_number_of_an_endpoint_is_no_path() -> None:
    """It names the directory that is removed."""
    (answer,) = answers("lab.loaders.pipeline", json.dumps(UNLOAD).encode())
    assert answer["ok"] is False
    assert "'../..'" in str(answer["error"])

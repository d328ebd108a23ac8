from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from lab.system.companion import Child, ChildError
from tests.lab.system import companions

COMPANION = companions.__name__


def test_a_second_start_is_refused_and_orphans_nothing() -> None:
    with Child("lab.traffic.engine") as child:
        pid = child.pid
        with pytest.raises(ChildError, match="it runs already: a second start would orphan the first process"):
            child.start()
        assert child.pid == pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_child_has_nothing_open_of_its_parent() -> None:
    """A map or a namespace that it held would live on without its owner."""
    with tempfile.TemporaryFile() as file, socket.socket() as ours, Child(COMPANION) as child:
        inherited = {os.readlink(f"/proc/self/fd/{number}") for number in (file.fileno(), ours.fileno())}
        answer, _ = child.request({"do": "tell"}, timeout=10)
    opened = answer["opened"]
    assert not inherited & set(opened.values())
    standard = [opened.pop(number) for number in "012"]
    assert standard[:2] == [os.devnull, os.devnull]
    assert opened.pop(str(answer["control"])).startswith("socket:")
    # Its parent's pidfd, and the directory that it lists.
    assert len(opened) <= 2, opened


def test_signals_end_a_child_whatever_its_parent_does_with_them() -> None:
    with Child(COMPANION) as child:
        pid = child.pid
        answer, _ = child.request({"do": "tell"}, timeout=10)
    assert answer["session"] == pid
    assert all(answer["handlers"])
    assert answer["blocked"] == []


def test_the_error_of_a_child_is_told_with_its_traceback() -> None:
    with Child(COMPANION) as child, pytest.raises(ChildError) as raised:
        child.request({"do": "fail"}, timeout=10)
    assert str(raised.value) == f"{COMPANION}: died with status 1: RuntimeError: out of order"
    assert "companions.py" in raised.value.stderr
    assert "printed to nobody" in raised.value.stderr


def test_a_killed_child_is_told_by_its_signal() -> None:
    with Child(COMPANION) as child:
        os.kill(child.pid, 9)
        with pytest.raises(ChildError, match="died with status -9"):
            child.request({"do": "tell"}, timeout=10)

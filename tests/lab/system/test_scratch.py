from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest

from lab.system.scratch import PREFIX, scratch
from tests.lab.labs import python

HOLD = (
    "import signal; from lab.system.scratch import scratch\nwith scratch() as it: print(it, flush=True); signal.pause()"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory that other tests do not sweep."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_is_removed_at_the_end(temporary: Path) -> None:
    with scratch() as path:
        assert (path.parent, path.stat().st_mode & 0o777) == (temporary, 0o700)
        (path / "deep").mkdir()
    assert list(temporary.iterdir()) == []


def test_what_was_killed_is_removed_by_the_next(temporary: Path) -> None:
    """What is in use stays, whosever it is; so does what only looks like ours."""
    (temporary / f"{PREFIX}file").touch()
    (temporary / f"{PREFIX}link").symlink_to(temporary)
    with scratch() as mine, python(HOLD) as killed, python(HOLD) as alive:
        assert killed.stdout is not None
        assert alive.stdout is not None
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, alive) if process.stdout)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        with scratch():
            assert not left.exists()
            assert used.exists()
            assert mine.exists()
        alive.kill()
    assert (temporary / f"{PREFIX}file").exists()
    assert (temporary / f"{PREFIX}link").exists()

"""What root writes for somebody else: nothing is followed, nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.system.output import BadDirectory, OutputDirectory

USER, GROUP, OTHER = 12345, 12346, 12347


def write(path: Path, text: str = "new") -> None:
    with OutputDirectory(path) as output:
        output.write("run.json", text)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "old")
    with (tmp_path / "a" / "b" / "run.json").open() as before:
        write(tmp_path / "a" / "b")
        assert before.read() == "old"
    assert (tmp_path / "a" / "b" / "run.json").read_text() == "new"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["run.json"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught:
        write(tmp_path)
    assert caught.value.filename == str(tmp_path / "run.json")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(BadDirectory, match=r"run\.json is not a file$"):
        write(tmp_path)
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("name", ["/dev", "/dev/", "/dev/../dev"])
def test_nothing_takes_the_place_of_a_device(name: str) -> None:
    """As `--out /dev/null` and `-o /dev/stdout` would have it."""
    devices = sorted(os.listdir("/dev"))
    with pytest.raises(BadDirectory, match=r"holds devices: name a file elsewhere$"), OutputDirectory(Path(name)):
        raise AssertionError("it was opened")
    assert sorted(os.listdir("/dev")) == devices


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "page.html").symlink_to("target")
    with OutputDirectory(tmp_path) as output:
        output.remove("page.html")
        output.remove("page.html")
        (tmp_path / "page.html").mkdir()
        with pytest.raises(OSError, match="Is a directory") as caught:
            output.remove("page.html")
    assert caught.value.filename == str(tmp_path / "page.html")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_directory_is_not_read(tmp_path: Path) -> None:
    """What is written there fails with one line later; no descriptor is left open."""
    (tmp_path / "run.json").mkdir()
    with OutputDirectory(tmp_path) as output:
        descriptors = os.listdir("/proc/self/fd")
        assert output.read("run.json") is None
        assert os.listdir("/proc/self/fd") == descriptors


def test_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").symlink_to(target)
    (out / f".run.json.{os.getpid()}").symlink_to(target)
    with OutputDirectory(out) as output:
        assert output.read("run.json") is None
        output.write("run.json", "new")
        assert output.read("run.json") == "new"
    assert target.read_text() == "precious"
    assert not (out / "run.json").is_symlink()


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(BadDirectory, match="out is a symbolic link: name the directory that it leads to"):
        write(tmp_path / "out")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, named in (
        (Path("/proc/none/there"), "/proc/none"),
        (tmp_path / "file" / "below", f"{tmp_path}/file/below"),
        (tmp_path / "made" / ("n" * 300), f"{tmp_path}/made/{'n' * 300}"),
    ):
        with pytest.raises(OSError) as raised, OutputDirectory(path):  # noqa: PT011 - the errno is the kernel's
            pass
        assert str(raised.value.filename) == named


def test_the_directory_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    """Whatever somebody puts in its place meanwhile."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with OutputDirectory(out) as output:
        out.rename(tmp_path / "moved")
        out.symlink_to(elsewhere)
        output.write("run.json", "new")
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "moved" / "run.json").read_text() == "new"


@pytest.fixture
def by_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(USER))
    monkeypatch.setenv("SUDO_GID", str(GROUP))


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.mark.privileged
@pytest.mark.usefixtures("by_sudo")
def test_only_the_own_file_is_given_to_the_caller_of_sudo(tmp_path: Path) -> None:
    """Not the others beside it, nor what links beside it lead to: a way to own any file."""
    out, shadow = tmp_path / "out", tmp_path / "shadow"
    out.mkdir()
    os.chown(out, USER, GROUP)
    shadow.write_text("root's")
    (out / "link").symlink_to(shadow)
    (out / "other").touch()
    os.link(shadow, out / "hard")
    write(out)
    assert owner(out / "run.json") == (USER, GROUP)
    for path in (shadow, out / "link", out / "other", out / "hard"):
        assert owner(path) == (0, 0), path


@pytest.mark.privileged
@pytest.mark.usefixtures("by_sudo")
def test_new_directories_belong_to_whoever_has_the_one_above(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, USER, GROUP)
    write(home / "a" / "b")
    write(tmp_path / "roots" / "own")
    for path in (home / "a", home / "a" / "b", home / "a" / "b" / "run.json"):
        assert owner(path) == (USER, GROUP), path
    for path in (tmp_path / "roots", tmp_path / "roots" / "own", tmp_path / "roots" / "own" / "run.json"):
        assert owner(path) == (0, 0), path


@pytest.mark.privileged
@pytest.mark.usefixtures("by_sudo")
def test_a_directory_of_somebody_else_gives_nothing_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, OTHER, OTHER)
    write(out)
    assert owner(out) == (OTHER, OTHER)
    assert owner(out / "run.json") == (0, 0)


@pytest.mark.privileged
@pytest.mark.parametrize("uid", ["", "-1", "root", "12 34", "99999999999"])
def test_what_sudo_does_not_say_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: str) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    monkeypatch.setenv("SUDO_GID", uid)
    write(tmp_path)
    assert owner(tmp_path / "run.json") == (0, 0)


def test_a_file_has_the_permissions_that_are_asked_for(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path) as output:
        output.write("packets", b"\x00\xff", mode=0o600)
    assert (tmp_path / "packets").read_bytes() == b"\x00\xff"
    assert (tmp_path / "packets").stat().st_mode & 0o777 == 0o600


def append(path: Path, name: str = "summary.md") -> None:
    with OutputDirectory(path) as output:
        output.append(name, "new\n")


def test_what_is_appended_leaves_the_file_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("old\n")
    path.chmod(0o600)
    before = path.stat()
    append(tmp_path)
    after = path.stat()
    assert path.read_text() == "old\nnew\n"
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)
    with OutputDirectory(tmp_path) as output:
        assert (output.size("summary.md"), output.size("other")) == (8, 0)


def test_nothing_is_appended_through_a_link_or_to_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("old")
    (tmp_path / "link").symlink_to("precious")
    with pytest.raises(BadDirectory, match="link is a symbolic link: name the file that it leads to"):
        append(tmp_path, "link")
    assert (tmp_path / "precious").read_text() == "old"
    with pytest.raises(OSError, match="Is a directory"):
        append(tmp_path.parent, tmp_path.name)
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BadDirectory, match="fifo is not a file"):
        append(tmp_path, "fifo")
    assert os.listdir("/proc/self/fd") == before
    os.close(reader)


@pytest.mark.privileged
@pytest.mark.usefixtures("by_sudo")
@pytest.mark.parametrize(("directory", "made"), [(USER, (USER, GROUP)), (OTHER, (0, 0))])
def test_a_new_file_is_given_to_the_caller_of_sudo_an_old_one_to_nobody(
    tmp_path: Path, directory: int, made: tuple[int, int]
) -> None:
    os.chown(tmp_path, directory, directory)
    (tmp_path / "old").touch()
    for name in ("old", "made"):
        append(tmp_path, name)
    assert (owner(tmp_path / "old"), owner(tmp_path / "made")) == ((0, 0), made)


def test_a_file_that_is_there_is_kept_if_it_must_not_be_replaced(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path) as output:
        output.write("x", "first", replace=False)
        with pytest.raises(FileExistsError, match=f"File exists: '{tmp_path}/x'"):
            output.write("x", "second", replace=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "first")]

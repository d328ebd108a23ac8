from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.results.recording import Recording
from lab.results.result import BadResult, Course, Series, read_result
from lab.results.subject import commit_of, hash_of, own_code, subject_of
from lab.system.output import BadDirectory
from lab.system.tools import run

VALUES = [Series("x", "s", (1.0, 2.0))]


def recording(out: Path | None) -> Recording:
    return Recording("gates", options={}, subjects={"": {}}, out=out)


def test_file_is_complete_only_when_all_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "new/deep/x.json"
    with recording(path) as under_way:
        with pytest.raises(BadResult, match="cut short"):
            read_result(path)
        under_way.save(VALUES, Course(rounds=1), complete=False)
        with pytest.raises(BadResult, match="cut short"):
            read_result(path)
        done = under_way.save(VALUES, Course(rounds=2), others=0.12345678)
    assert read_result(path) == done
    assert (done.load.others, len(done.load.after), done.course.rounds) == (0.1235, 3, 2)


def test_a_measurement_that_fails_leaves_no_result(tmp_path: Path) -> None:
    def measure() -> None:
        with recording(tmp_path / "x.json") as under_way:
            under_way.save(VALUES, Course(), complete=False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure()
    with pytest.raises(BadResult, match="cut short"):
        read_result(tmp_path / "x.json")


def test_a_place_that_cannot_be_written_is_noticed_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError), recording(tmp_path / "file/x.json"):
        pytest.fail("measured")
    with pytest.raises(BadDirectory), recording(tmp_path / "link/x.json"):
        pytest.fail("measured")
    with pytest.raises(IsADirectoryError), recording(tmp_path):
        pytest.fail("measured")
    with pytest.raises(FileNotFoundError), recording(Path("/proc/none/x.json")):
        pytest.fail("measured")


@contextmanager
def smaller_files(most: int) -> Iterator[None]:
    """Let the kernel refuse files of more bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_later_ends_no_measurement_and_is_told_at_its_end(tmp_path: Path) -> None:
    path, many = tmp_path / "x.json", [Series("x", "s", (1.0,) * 10_000)]
    printed = []

    def measure() -> None:
        with recording(path) as under_way:
            with smaller_files(5000):
                under_way.save(many, Course())
            printed.append(under_way.result)

    with pytest.raises(OSError, match="File too large"):
        measure()
    assert len(printed[0].series[0].values) == 10_000
    with pytest.raises(BadResult, match="cut short"):
        read_result(path)


def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path: Path) -> None:
    path, many = tmp_path / "x.json", [Series("x", "s", (1.0,) * 10_000)]
    with recording(path) as under_way:
        with smaller_files(5000):
            under_way.save(many, Course(), complete=False)
        done = under_way.save(many, Course())
    assert read_result(path) == done


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with recording(None) as under_way:
        assert under_way.save(VALUES, Course()).complete
    assert list(tmp_path.iterdir()) == []


def test_hash_is_that_of_names_and_contents(tmp_path: Path) -> None:
    def tree(name: str, **files: str) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        for file, text in files.items():
            (directory / file.replace("_", ".")).write_text(text)
        return directory

    first = hash_of(tree("first", a_c="x", b_h="y", note_txt="z"))
    assert first == hash_of(tree("same", a_c="x", b_h="y", note_txt="other"))
    assert first != hash_of(tree("content", a_c="x", b_h="z"))
    assert first != hash_of(tree("name", a_c="x", c_h="y"))


def test_subject_has_the_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    run([*git, "init", "--quiet"])
    (tmp_path / "bpf_lxc.c").write_text("int x;\n")
    run([*git, "add", "."])
    run([*git, "commit", "--quiet", "-m", "x"])
    commit = run([*git, "rev-parse", "HEAD"]).strip()
    found = subject_of(library=tmp_path, defines=[("A", "1"), ("B", "")], loader="", attach="tc")
    assert found == {
        "attach": "tc",
        "defines": "A=1 B",
        "library": str(tmp_path),
        "library sha256": hash_of(tmp_path),
        "commit": commit,
        **own_code(),
    }
    (tmp_path / "bpf_lxc.c").write_text("int y;\n")
    assert commit_of(tmp_path) == f"{commit}-dirty"


def test_a_repository_that_knows_none_of_the_files_is_not_theirs(tmp_path: Path) -> None:
    """As where we are installed into an environment inside somebody's repository."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    run([*git, "init", "--quiet"])
    run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"])
    (tmp_path / ".venv" / "bpf").mkdir(parents=True)
    (tmp_path / ".venv" / "bpf" / "bpf_lxc.c").write_text("int x;\n")
    assert commit_of(tmp_path / ".venv" / "bpf") == ""


def test_every_subject_says_which_code_of_ours_it_was(tmp_path: Path) -> None:
    ours = own_code()
    root = Path(__file__).resolve().parents[3]
    assert ours.get("reloadlab commit", "") == commit_of(root / "lab")
    assert len(ours["reloadlab sha256"]) == 64
    assert subject_of(loader="builtin").items() >= ours.items()


USER = 12345


@pytest.fixture
def of_somebody_else() -> Iterator[Path]:
    """Sources in a repository of another user, whose configuration has git start a program that leaves a file."""
    root = Path(tempfile.mkdtemp())
    try:
        # Other users can look into it, which they cannot with pytest's own directories.
        root.chmod(0o755)
        git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
        (root / "bpf").mkdir()
        (root / "bpf/bpf_lxc.c").write_text("int x;\n")
        for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"]):
            run([*git, *words])
        (root / "started").mkdir(mode=0o777)
        (root / "started").chmod(0o777)
        run([*git, "config", "core.fsmonitor", f"touch {root}/started/by-$(id -u); false"])
        for path in (root, *root.rglob("*")):
            os.chown(path, USER, USER)
        yield root
    finally:
        shutil.rmtree(root)


@pytest.mark.privileged
def test_what_a_repository_has_git_start_is_not_started_as_root(of_somebody_else: Path) -> None:
    assert len(commit_of(of_somebody_else / "bpf")) == 40
    assert os.listdir(of_somebody_else / "started") == [f"by-{USER}"]


@pytest.mark.privileged
def test_a_repository_around_sources_of_root_is_none_of_theirs(of_somebody_else: Path) -> None:
    os.chown(of_somebody_else / "bpf", 0, 0)
    assert commit_of(of_somebody_else / "bpf") == ""
    assert os.listdir(of_somebody_else / "started") == []

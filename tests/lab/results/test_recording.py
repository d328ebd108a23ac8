from __future__ import annotations

from pathlib import Path

import pytest

from lab.results.recording import Recording
from lab.results.result import BadResult, Course, Series, read_result
from lab.results.subject import commit_of, hash_of, subject_of
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
    }
    (tmp_path / "bpf_lxc.c").write_text("int y;\n")
    assert commit_of(tmp_path) == f"{commit}-dirty"

"""Files that name releases: what their keys mean, and one line for what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from datapath.endpoint import Attachment
from lab.agent.releasefile import BadReleases, Release, read_releases

FILE = """
["1.14.18"]
library = "~/cilium-1.14/bpf"
loader = "~/loaders/cilium-114 -compile"

["1.16.5 tcx"]
library = "cilium-1.16/bpf"
loader = "env PATH=/usr/bin loader"
attach = "tcx"

[ours]
loader = "builtin"
"""


def make_program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)


def test_each_table_is_a_release_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the file, and `~` is the caller's home."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    make_program(home / "loaders" / "cilium-114")
    (tmp_path / "releases.toml").write_text(FILE)
    assert read_releases(tmp_path / "releases.toml") == [
        Release(
            "1.14.18",
            home / "cilium-1.14/bpf",
            f"{home}/loaders/cilium-114 -compile",
            Attachment.TC,
        ),
        Release("1.16.5 tcx", tmp_path / "cilium-1.16/bpf", "env PATH=/usr/bin loader", Attachment.TCX),
        Release("ours"),
    ]


def test_a_relative_file_has_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "releases.toml").write_text('[one]\nlibrary = "bpf"\nloader = "./load"')
    make_program(tmp_path / "load")
    monkeypatch.chdir(tmp_path)
    (found,) = read_releases(Path("releases.toml"))
    assert (found.library, found.loader) == (tmp_path / "bpf", str(tmp_path / "load"))


def test_a_release_is_options_of_an_agent_and_of_a_run() -> None:
    """What it does not name is said, too: an upgrade comes from a release that may have named it."""
    release = Release("one", Path("/c/bpf"), None, Attachment.TCX)
    assert release.options == {"library": Path("/c/bpf"), "loader": None, "attach": Attachment.TCX}
    assert release.argv == ["--library", "/c/bpf", "--attach", "tcx"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"~/cilium/bpf", "not TOML"),
        (b"[one]\nlibrary = '\xff'", "not TOML"),
        (b"library = '/c'", "library is no table"),
        (b"[one]\nlibary = '/c'", "one has libary; there are library, loader, attach"),
        (b"[one]\nlibrary = 1", "one: library is no text"),
        (b"[one]\nloader = ''", "one: loader is no text"),
        (b'[one]\nloader = "\'x"', "one: --loader 'x: No closing quotation"),
        (b"[one]\nattach = 'xdp'", "one: attach is 'xdp', not tc, tcx, auto"),
        (b'["../one"]', "'../one' cannot be the name of a release"),
        (b'["/etc"]', "'/etc' cannot be the name of a release"),
        (b'[".."]', "'..' cannot be the name of a release"),
        (b'[""]', "'' cannot be the name of a release"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "releases.toml"
    path.write_bytes(content)
    with pytest.raises(BadReleases) as raised:
        read_releases(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert reason in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadReleases, match=r"none\.toml: No such file or directory$"):
        read_releases(tmp_path / "none.toml")

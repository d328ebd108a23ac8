from __future__ import annotations

from pathlib import Path

import pytest

from datapath.errors import ToolError
from lab.vm.fetch import ROOM, SECURITY_SUITES, SUITES, CannotFetch, check_room, last_words, newest, sources

NAMES = (
    *("linux-image-6.1.0-56-amd64", "linux-image-6.1.0-57-amd64", "linux-image-6.1.0-58-cloud-amd64"),
    *("linux-image-6.1.0-59-rt-amd64", "linux-image-6.1.0-57-amd64-dbg", "linux-image-6.1.0-60-amd64-unsigned"),
    *("linux-image-6.12.95+deb12-amd64", "linux-image-6.12.118+deb13-amd64", "linux-image-amd64"),
    *("linux-image-6.1-amd64", "linux-image-6.12.200-arm64", "linux-modules-6.19.1-amd64"),
)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("6.1", "6.1.0-57-amd64"),
        ("6.12", "6.12.118+deb13-amd64"),
        ("6.12.95", "6.12.95+deb12-amd64"),
        ("6", "6.12.118+deb13-amd64"),
        ("newest", "6.12.118+deb13-amd64"),
    ],
)
def test_newest_release_of_a_version_that_has_all_drivers(version: str, release: str) -> None:
    assert newest(version, NAMES, "amd64") == release


def test_a_version_that_there_is_not_names_those_that_there_are() -> None:
    with pytest.raises(CannotFetch, match=r"there is no kernel 5\.10 here; there are 6\.1, 6\.12$"):
        newest("5.10", NAMES, "amd64")


def test_other_suites_are_asked_of_the_mirrors_of_the_machine() -> None:
    key = "/usr/share/keyrings/some.gpg"
    listed = f"mirror://a/debian\tbookworm\tDebian\t{key}\nmirror://a/debian\tbookworm-updates\tDebian\t{key}\n"
    listed += "mirror://b/security\tbookworm-security\tDebian\t$(SIGNED_BY)\n"
    lines = sources(listed)
    assert lines[: len(SUITES)] == [f"deb [signed-by={key}] mirror://a/debian {suite} main" for suite in SUITES]
    assert lines[len(SUITES) :] == [f"deb mirror://b/security {suite} main" for suite in SECURITY_SUITES]


@pytest.mark.parametrize("origin", ["Debian", "$(ORIGIN)"])
def test_mirrors_of_others_are_not_asked(origin: str) -> None:
    """Whoever is listed first; before the first update apt knows of nobody who it is."""
    listed = f"mirror://other\tbookworm\tOther\t$(SIGNED_BY)\nmirror://a/debian\tbookworm\t{origin}\t$(SIGNED_BY)\n"
    assert sources(listed)[0] == f"deb mirror://a/debian {SUITES[0]} main"


def test_a_key_of_several_lines_is_no_source() -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----"
    listed = f"mirror://a/debian\tbookworm\tDebian\t{key}\n"
    assert sources(listed) == [f"deb mirror://a/debian {suite} main" for suite in SUITES]


@pytest.mark.parametrize(
    ("stderr", "said"), [("W: one\nE: two\n", "E: two"), ("", "exit code 100"), (" \n", "exit code 100")]
)
def test_an_update_that_fails_in_silence_is_told_as_well(stderr: str, said: str) -> None:
    assert last_words(ToolError(["apt-get", "update"], 100, stderr)) == said


def test_a_machine_without_sources_is_one_line() -> None:
    with pytest.raises(CannotFetch, match="apt has no sources here"):
        sources("")


def test_a_full_disk_is_one_line_before_anything_is_downloaded() -> None:
    check_room(ROOM, Path("/cache"))
    with pytest.raises(CannotFetch, match=r"^/cache has 699 MB, a kernel needs 700: make room, or name .*_KERNELS$"):
        check_room(ROOM - 1, Path("/cache"))

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lab.box import plan
from lab.box.plan import (
    RELEASES,
    BoxPlan,
    CannotBuild,
    box_name,
    check_room,
    check_tools,
    content_digest,
    missing_tools,
)
from lab.cli.commands import vm
from lab.vm.kernels import Kernel

ROOT = Path(__file__).resolve().parents[3]
BOOKWORM, TRIXIE = RELEASES.values()


def test_a_box_is_named_by_its_kernel_and_by_what_is_not_the_default() -> None:
    assert box_name("6.12", BOOKWORM) == "linux-6.12"
    assert box_name("6.12", TRIXIE) == "linux-6.12-trixie"
    assert box_name("7.3.0-mine/../x y", BOOKWORM) == "linux-7.3.0-mine-..-x-y"


def test_versions_rise_with_the_day_and_differ_with_the_content() -> None:
    kernel = Kernel("6.12", "6.12.1", Path("vmlinuz"), Path("modules"))
    older, newer = (
        BoxPlan(BOOKWORM, kernel, digest, day * 86400, "") for digest, day in (("ff" * 32, 1), ("00" * 32, 2))
    )
    assert (older.version, newer.version) == ("19700102.4294967295", "19700103.0")
    assert re.fullmatch(r"\d+\.\d+", older.version)


def test_the_digest_has_words_and_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    digests = {
        content_digest(words, files)
        for words in (["ab", "c"], ["a", "bc"], ["abc"])
        for files in ([one, other], [other, one], [one])
    }
    assert len(digests) == 9
    assert content_digest(["a"], [one]) == content_digest(["a"], [one])


def test_a_box_has_the_packages_that_set_up_installs() -> None:
    setup = (ROOT / "tools" / "setup").read_text()
    listed = re.search(r"for package in (python3-venv [^;]*); do", setup)
    assert listed is not None
    for release in RELEASES.values():
        assert set(listed[1].split()) <= set(release.packages)
        assert {"clang-16", "clang"} & set(release.packages)


def test_the_releases_of_the_command_line_are_all_that_there_are() -> None:
    assert tuple(RELEASES) == vm.RELEASES


def test_missing_tools_are_one_line_with_all_packages() -> None:
    check_tools([])
    with pytest.raises(CannotBuild, match=r"without mcopy, qemu-img: apt-get install mtools qemu-utils$"):
        check_tools(["mcopy", "qemu-img"])


def test_a_full_disk_is_one_line_before_anything_is_downloaded() -> None:
    check_room(10 << 20, Path("/boxes"), 10 << 20, "X")
    with pytest.raises(CannotBuild, match=r"^/boxes has 9 MB, building a box needs 10: make room, or .* in X$"):
        check_room((10 << 20) - 1, Path("/boxes"), 10 << 20, "X")


def test_no_path_of_a_plan_leaves_the_directory_of_boxes() -> None:
    assert os.sep not in box_name("../" * 3, BOOKWORM)


def test_a_file_that_a_box_is_built_with_is_missing_like_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's package of syslinux only recommends the one with its master boot record."""
    record = tmp_path / "mbr.bin"
    monkeypatch.setattr(plan, "TOOLS", {"sh": "dash", str(record): "syslinux-common"})
    assert missing_tools() == [str(record)]
    record.touch()
    assert missing_tools() == []

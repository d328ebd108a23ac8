"""What `vm` and `run --kernel` say to wrong calls, and before anything is booted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.box import build
from lab.cli.commands.vm import MODES
from lab.cli.main import main
from lab.vm import survey
from lab.vm.kernels import KERNELS_VARIABLE
from tests.lab.vm.samples import kernel_image


@pytest.fixture(autouse=True)
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory of kernels."""
    monkeypatch.setenv(KERNELS_VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_list_names_what_was_fetched(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vm", "ls"]) == 0
    assert capsys.readouterr().out == ""
    (kernels / "6.12.95+deb12-amd64").mkdir(parents=True)
    assert main(["vm", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["6.12.95+deb12-amd64"]


@pytest.mark.privileged
@pytest.mark.parametrize(
    "argv",
    [
        ["vm", "exec", "6.12", "--", "true"],
        ["vm", "survey", "6.12"],
        ["run", "--kernel", "6.12"],
    ],
)
def test_a_kernel_that_was_not_fetched_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 1
    assert capsys.readouterr().err == "reloadlab: no kernel 6.12 has been fetched: reloadlab vm fetch 6.12\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["vm"], "the following arguments are required: COMMAND"),
        (["vm", "exec", "6.12", "true"], "unexpected argument true"),
        (["vm", "down"], "the following arguments are required: --all"),
        (["vm", "box", "6.12", "--release", "bullseye"], "no bullseye; it is bookworm, trixie"),
        (["run", "--kernel", "6.1,,6.12"], "'6.1,,6.12' is no list of different kernels, such as 6.1,6.12"),
        (["run", "--kernel", "6.1,6.1"], "is no list of different kernels"),
        (["run", "--kernel", "6.1", "--kernel-cpus", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_a_wrong_call_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_exec_without_a_command_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vm", "exec", "6.12"]) == 2
    assert capsys.readouterr().err.endswith("give a command after --: reloadlab vm exec 6.12 -- uname -r\n")


def test_the_modes_of_a_survey_are_those_that_there_are() -> None:
    assert tuple(survey.MODES) == MODES


@pytest.mark.privileged
def test_a_box_of_a_kernel_without_modules_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(kernel_image("6.12.1-mine"))
    assert main(["vm", "box", str(image)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"reloadlab: {image} has no modules: {tmp_path}/lib/modules/6.12.1-mine is missing; ")


@pytest.mark.privileged
def test_what_a_box_is_built_with_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RELOADLAB_BOXES", str(tmp_path / "boxes"))
    image = tmp_path / "vmlinuz"
    image.write_bytes(kernel_image("6.12.1-mine"))
    (tmp_path / "lib" / "modules" / "6.12.1-mine").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["vm", "box", str(image)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reloadlab: a box cannot be built without mmdebstrap, qemu-img, ")
    packages = "mmdebstrap qemu-utils e2fsprogs fdisk dosfstools mtools syslinux"
    assert f"apt-get install {packages}" in line
    assert " busybox-static kmod " in line
    assert not (tmp_path / "boxes").exists()


@pytest.mark.privileged
@pytest.mark.parametrize("lacking", ["tools", "lock"])
def test_what_a_box_lacks_is_told_before_its_kernel_is_fetched(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "missing_tools", lambda: ["mmdebstrap"] if lacking == "tools" else [])
    said = {
        "tools": "a box cannot be built without mmdebstrap: apt-get install mmdebstrap",
        "lock": f"{tmp_path}/lock is missing: run this in a checkout, or name the lock by --lock",
    }
    # A fetch would have nothing to ask with.
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "busybox").symlink_to("/bin/busybox")
    assert main(["vm", "box", "6.12", "--lock", str(tmp_path / "lock")]) == 1
    assert capsys.readouterr().err == f"reloadlab: {said[lacking]}\n"

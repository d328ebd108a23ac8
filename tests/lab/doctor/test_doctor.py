"""The doctor's lines, and that other commands fail with the same ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.errors import ToolError, ToolMissing
from datapath.kernel.helpers import Helper, is_known
from lab.doctor import probes
from lab.doctor.doctor import REQUIREMENTS, Finding, Requirement, RequirementMissing, State, examine, require
from lab.node.builder import NoVlanDevices
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.lab.labs import NOBODY, cli, unique_name

ROOT = Path(__file__).resolve().parents[3]

DOCTOR = """
import argparse, sys
from lab.cli.commands import doctor
parser = argparse.ArgumentParser()
doctor.add_parser(parser.add_subparsers())
args = parser.parse_args(["doctor", *sys.argv[1:]])
sys.exit(args.run(args))
"""
"""The command alone: what it says must not depend on the other commands."""


def doctor(
    *options: str, prefix: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", DOCTOR, *options],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def path_without_clang(tmp_path: Path) -> Path:
    """A directory that has every tool that a probe runs, but no compiler."""
    for tool in ("ip", "tc", "unshare", "mount", "true", "strace"):
        found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    return tmp_path


@pytest.mark.privileged
def test_this_machine_has_what_is_needed() -> None:
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == [f"{requirement.name}:" for requirement in REQUIREMENTS]
    assert {line.split()[0] for line in lines} <= {"ok", "off"}
    assert done.stderr == ""


@pytest.mark.privileged
@pytest.mark.parametrize("call", ["seccomp", "pidfd_getfd"])
def test_a_kernel_without_user_notification_is_told_and_serves_for_all_else(call: str) -> None:
    """Filters of Linux 5.0 have a listener, but it takes that of 5.6 to have another process decide.

    All commands are tried on a kernel that has neither, one of them on the other.
    """
    kernel = (sys.executable, "-m", "tests.lab.gates.unnotified", call)
    done = doctor(prefix=kernel)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "notify" in line]
    assert line.startswith("off     notify: system calls cannot be gates here: ")
    assert "Function not implemented; needs Linux 5.6 with CONFIG_SECCOMP_FILTER" in line

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [*kernel, *cli(*words)]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    refusing = (("prove",), ("prove", "--two"), ("faults",), ("faults", "--life"), ("bench", "gates"))
    for words in refusing if call == "seccomp" else refusing[:1]:
        refused = run(*words)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1), refused.stderr
        assert refused.stderr.startswith("reloadlab: missing notify: system calls cannot be gates here: ")
    if call != "seccomp":
        return
    name = unique_name("unnotified")
    for command in (f"up {name} --pods 1", f"reload {name}/pod-1", f"down {name}"):
        done = run(*command.split())
        assert done.returncode == 0, done.stderr


@pytest.mark.privileged
def test_json_says_the_same_as_the_lines() -> None:
    done = doctor("--json")
    document = json.loads(done.stdout)
    assert document["ok"] is True
    findings = [Finding(r["name"], State(r["state"]), r["detail"], r["remedy"]) for r in document["requirements"]]
    assert [str(finding) for finding in findings] == doctor().stdout.splitlines()


@pytest.mark.privileged
def test_probes_leave_nothing_on_the_host() -> None:
    def seen() -> tuple[list[str], list[str], str]:
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        # Other tests mount what is theirs at the same time, in these two places.
        mounts = [
            m for m in Path("/proc/self/mounts").read_text().splitlines() if m.split()[1][:5] not in ("/run/", "/tmp/")
        ]
        return mounts, [w.split()[1] for w in links.splitlines()], _qdiscs_of_lo()

    before = seen()
    probes.bpffs(), probes.veth(), probes.vxlan(), probes.bridge(), probes.cls_bpf()
    with suppress(ToolError):
        probes.vlan()
    assert seen() == before


@pytest.mark.privileged
def test_vlan_says_whether_a_node_can_have_vlan_devices() -> None:
    (requirement,) = (each for each in REQUIREMENTS if each.name == "vlan")
    (finding,) = examine([replace(requirement, needs=())])
    try:
        with Node(NodeSpec(unique_name(), pods=0, devices=("eth0", "eth0.100"))):
            expected = Finding("vlan", State.OK, "can be made")
    except NoVlanDevices:
        remedy = "needs a kernel with CONFIG_VLAN_8021Q for VLAN devices (--devices eth0,eth0.100)"
        expected = Finding("vlan", State.OFF, "Error: Unknown device type.", remedy)
    assert finding == expected


def _qdiscs_of_lo() -> str:
    return subprocess.run(["tc", "qdisc", "show", "dev", "lo"], capture_output=True, text=True, check=True).stdout


@pytest.mark.privileged
def test_without_root_there_is_one_clear_line() -> None:
    done = doctor(prefix=NOBODY)
    assert done.returncode == 1
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing")]
    assert missing[0].startswith("missing root: user 65534 is not root; run it as root")
    # What only root can find out is not called missing; who lacks /usr/sbin in PATH may lack tc as well.
    assert {line.split()[1] for line in missing} <= {"root:", "tc:"}
    assert "unknown veth: not checked without root" in done.stdout
    assert done.stderr == ""


READ_ONLY_SETTINGS = (
    *("unshare", "--mount", "sh", "-c"),
    'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"',
    "sh",
)
WITHOUT_NICE = ("setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("prefix", "line"),
    [
        pytest.param(
            READ_ONLY_SETTINGS, "missing sysctl: /proc/sys/net is mounted read-only; ", id="read-only settings"
        ),
        pytest.param(WITHOUT_NICE, "missing nice: user 0 without CAP_SYS_NICE; traffic needs it", id="no CAP_SYS_NICE"),
        pytest.param(
            ("prlimit", "--nofile=100:100"),
            "missing descriptors: at most 100, a lab with 16 pods needs 144; raise it as root: ulimit -n",
            id="few descriptors",
        ),
    ],
)
def test_what_a_container_or_a_service_lacks_is_told(prefix: tuple[str, ...], line: str) -> None:
    done = doctor(prefix=prefix)
    assert done.returncode == 1
    (missing,) = [found for found in done.stdout.splitlines() if found.startswith("missing")]
    assert missing.startswith(line)


LITTLE_MEMORY = (
    "prlimit",
    "--memlock=65536:65536",
    "setpriv",
    "--bounding-set=-sys_resource",
    "--inh-caps=-sys_resource",
)


@pytest.mark.privileged
def test_little_locked_memory_is_missing_only_where_maps_are_counted() -> None:
    (line,) = [found for found in doctor(prefix=LITTLE_MEMORY).stdout.splitlines() if " memory: " in found]
    if is_known(Helper.KTIME_GET_COARSE_NS):  # Linux 5.11, which ended the counting as well
        assert line == "ok      memory: maps of any size; 65536 bytes of locked memory do not concern them"
    else:
        assert line.startswith("missing memory: all maps together may have 65536 bytes (RLIMIT_MEMLOCK); raise the")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("{tmp}/labs", "ok      run: labs can be made in {tmp}/labs"),
        ("{tmp}", "ok      run: labs can be made in {tmp}"),
        ("{tmp}/file/labs", "missing run: {tmp}/file is not a directory; "),
        (
            "/proc/labs",
            "missing run: /proc takes no directory: No such file or directory; mount a writable tmpfs there, or",
        ),
    ],
)
def test_the_run_directory_that_is_named_is_examined(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / "file").touch()
    done = doctor(environment={"RELOADLAB_RUN": path.format(tmp=tmp_path)})
    (found,) = [found for found in done.stdout.splitlines() if " run: " in found]
    assert found.startswith(line.format(tmp=tmp_path))


@pytest.mark.privileged
def test_the_run_directory_may_go_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes with the last lab, which another process may remove at any moment."""
    run = tmp_path / "labs"
    run.mkdir()
    make = tempfile.mkdtemp

    def gone_before(*, prefix: str, dir: Path) -> str:
        if dir == run:
            run.rmdir()
        return make(prefix=prefix, dir=dir)

    monkeypatch.setenv("RELOADLAB_RUN", str(run))
    monkeypatch.setattr(tempfile, "mkdtemp", gone_before)
    assert probes.run_directory() == f"labs can be made in {run}"


def test_fallback_tunnels_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the way of nothing, but seen in every `ip link`: `unshare` is one that shows them."""
    shown = "1: lo: <LOOPBACK>\n2: tunl0@NONE: <NOARP>\n3: sit0@NONE: <NOARP>\n"
    (tmp_path / "unshare").write_text(f"#!/bin/sh\nprintf '{shown}'\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert probes.netns() == "can be made; they begin with tunl0, sit0"


def test_without_clang_there_is_one_clear_line(path_without_clang: Path) -> None:
    done = doctor(environment={"PATH": str(path_without_clang), "RELOADLAB_CLANG": ""})
    assert done.returncode == 1
    assert "missing clang: clang not found; apt-get install clang-16 (or clang)" in done.stdout.splitlines()


def test_a_clang_that_was_named_is_not_replaced(tmp_path: Path) -> None:
    done = doctor(environment={"RELOADLAB_CLANG": str(tmp_path / "clang-99")})
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if " clang: " in line)
    assert line.startswith(f"missing clang: {tmp_path}/clang-99 not found; named by RELOADLAB_CLANG")


def test_a_command_fails_with_the_doctors_line(path_without_clang: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(path_without_clang))
    monkeypatch.delenv("RELOADLAB_CLANG", raising=False)
    told = next(finding for finding in examine() if finding.name == "clang")
    with pytest.raises(RequirementMissing) as caught:
        require("ip", "clang")
    assert str(caught.value) == str(told)
    assert caught.value.finding == told


@pytest.mark.privileged
def test_a_command_that_needs_root_says_so_first() -> None:
    script = (
        "from lab.doctor.doctor import require\ntry:\n    require('veth')\nexcept Exception as error:\n    print(error)"
    )
    done = subprocess.run(
        [*NOBODY, sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout in doctor(prefix=NOBODY).stdout
    assert done.stdout.startswith("missing root: user 65534 is not root;")


@pytest.mark.privileged
def test_require_passes_where_all_is_met() -> None:
    require("root", "run", "bpf", "bpffs", "clang", "cls_bpf", "vxlan")


def test_require_knows_only_names_of_the_table() -> None:
    with pytest.raises(KeyError):
        require("no-such-requirement")


def _fails_with(error: Exception) -> Requirement:
    def probe() -> str:
        raise error

    return Requirement("thing", probe, "buy one")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(probes.Unmet("none here"), "missing thing: none here; buy one", id="unmet"),
        pytest.param(ToolMissing("saw", "ask"), "missing thing: saw not found; ask", id="tool-missing"),
        pytest.param(
            ToolError(["ip", "link"], 2, "Error: Specified qdisc kind is unknown.\nCommand failed -:1\n"),
            "missing thing: Error: Specified qdisc kind is unknown.; buy one",
            id="tool-error",
        ),
        pytest.param(ToolError(["ip"], 3, ""), "missing thing: ip: exit code 3; buy one", id="silent-tool-error"),
    ],
)
def test_line_of_a_failed_probe(error: Exception, line: str) -> None:
    assert [str(finding) for finding in examine([_fails_with(error)])] == [line]


def test_what_is_optional_is_off_and_what_needs_it_is_unknown() -> None:
    def unavailable() -> str:
        raise probes.Unmet("none here")

    table = (
        Requirement("first", unavailable, "buy one", optional=True),
        Requirement("second", lambda: "fine", "", ("first",)),
        Requirement("third", lambda: "fine", ""),
    )
    assert [str(finding) for finding in examine(table)] == [
        "off     first: none here; buy one",
        "unknown second: not checked without first",
        "ok      third: fine",
    ]


def test_every_need_stands_before_what_needs_it() -> None:
    seen: set[str] = set()
    for requirement in REQUIREMENTS:
        assert seen.issuperset(requirement.needs), requirement.name
        assert requirement.name not in seen
        assert requirement.remedy
        seen.add(requirement.name)


def test_the_other_package_called_bcc_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    with pytest.raises(probes.Unmet, match="is not the BPF Compiler Collection"):
        probes.bcc()


def test_a_tool_outside_path_is_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="add that directory to PATH"):
        probes.tool("tc")

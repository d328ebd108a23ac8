"""What a machine must have for the lab, as a table of requirements, each with the probe that finds out.

The probes ask the running kernel and never compare versions. Those that make something (links, qdiscs, mounts) make it
in a namespace of a child process, which takes it along when it ends: the host's own are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from datapath.build.compile import PREFERRED_CLANG, find_clang
from datapath.errors import ReloadlabError, ToolError, ToolMissing
from lab.doctor import probes
from lab.node.registry import RUN_VARIABLE


class State(StrEnum):
    """What became of a requirement: met; not met; not met, but the lab works without; not checked."""

    OK = "ok"
    MISSING = "missing"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that the lab needs, or makes use of (`optional`).

    `probe` returns a word on what it found, and raises a ReloadlabError that says why it found nothing. `quick` is a
    cheaper probe that is good enough before a command. `needs` names what must be met for the probe to make sense.
    """

    name: str
    probe: Callable[[], str]
    remedy: str
    needs: tuple[str, ...] = ()
    optional: bool = False
    quick: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What the probe of a requirement came to; str() is the doctor's line."""

    name: str
    state: State
    detail: str
    remedy: str | None = None

    def __str__(self) -> str:
        line = f"{self.state:<7} {self.name}: {self.detail}"
        return f"{line}; {self.remedy}" if self.remedy else line


class RequirementMissing(ReloadlabError):
    """A command was called on a machine that lacks what it needs; str() is the doctor's line for it.

    What others can do without is missing here.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(replace(finding, state=State.MISSING)))
        self.finding = finding


def _kernel(*options: str) -> str:
    return f"needs a kernel with {', '.join(options)}"


def _apt(package: str) -> str:
    return f"apt-get install {package}"


def _tool(name: str) -> Callable[[], str]:
    return lambda: probes.tool(name)


IPROUTE = _apt("iproute2")

REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement("root", probes.root, "run it as root, for example with sudo (in a container: --privileged)"),
    Requirement(
        "run",
        probes.run_directory,
        f"mount a writable tmpfs there, or name another directory in {RUN_VARIABLE}",
        ("root",),
    ),
    Requirement(
        "sysctl", probes.sysctl, "mount it writable (in a container: --privileged), or run on the host", ("root",)
    ),
    Requirement(
        "nice", probes.nice, "traffic needs it (in a container: --privileged, or --cap-add SYS_NICE)", ("root",)
    ),
    Requirement("descriptors", probes.descriptors, "raise it as root: ulimit -n 65536 (systemd: LimitNOFILE=65536)"),
    Requirement("bpf", probes.bpf, _kernel("CONFIG_BPF_SYSCALL"), ("root",)),
    Requirement(
        "memory",
        probes.memory,
        "raise the limit as root: ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
        ("root", "bpf"),
    ),
    Requirement("bpffs", probes.bpffs, _kernel("CONFIG_BPF_SYSCALL"), ("root",)),
    Requirement("jit", probes.jit, "sysctl net.core.bpf_jit_enable=1 (CONFIG_BPF_JIT)", optional=True),
    Requirement("btf", probes.btf, _kernel("CONFIG_DEBUG_INFO_BTF"), optional=True),
    Requirement(
        "clock",
        probes.clock,
        "it came with Linux 5.11 (connections are timed by bpf_ktime_get_ns, which takes longer)",
        ("root", "bpf"),
        optional=True,
    ),
    Requirement("ip", _tool("ip"), IPROUTE),
    Requirement("tc", _tool("tc"), IPROUTE),
    Requirement("netns", probes.netns, _kernel("CONFIG_NET_NS"), ("root", "ip")),
    Requirement("veth", probes.veth, _kernel("CONFIG_VETH"), ("root", "ip", "netns")),
    Requirement("vxlan", probes.vxlan, _kernel("CONFIG_VXLAN"), ("root", "ip", "netns")),
    Requirement(
        "bridge",
        probes.bridge,
        f"{_kernel('CONFIG_BRIDGE')} for more than one node",
        ("root", "ip", "netns"),
        optional=True,
    ),
    Requirement(
        "vlan",
        probes.vlan,
        f"{_kernel('CONFIG_VLAN_8021Q')} for VLAN devices (--devices eth0,eth0.100)",
        ("root", "ip", "netns", "veth"),
        optional=True,
    ),
    Requirement(
        "clsact", probes.clsact, _kernel("CONFIG_NET_SCH_INGRESS", "CONFIG_NET_CLS_ACT"), ("root", "tc", "netns")
    ),
    Requirement("cls_bpf", probes.cls_bpf, _kernel("CONFIG_NET_CLS_BPF"), ("root", "tc", "netns", "clsact")),
    Requirement("tcx", probes.tcx, "needs Linux 6.6 with CONFIG_NET_XGRESS", ("root", "bpf"), optional=True),
    Requirement(
        "netkit",
        probes.netkit,
        f"{_kernel('CONFIG_NETKIT')}, Linux 6.7, for pods with such devices (--datapath-mode)",
        ("root", "ip", "netns"),
        optional=True,
    ),
    Requirement(
        "notify",
        probes.notify,
        "needs Linux 5.6 with CONFIG_SECCOMP_FILTER, and no other listener of seccomp, such as a container's, above it "
        "(`prove`, `faults`, `upgrade` and gates at calls use it)",
        ("root",),
        optional=True,
    ),
    Requirement("clang", probes.clang, _apt(f"{PREFERRED_CLANG} (or clang)"), quick=lambda: str(find_clang())),
    Requirement("strace", _tool("strace"), f"{_apt('strace')} (only tests use it)", optional=True),
    Requirement(
        "bcc", probes.bcc, f"{_apt('python3-bpfcc')} (the Python index has another package called bcc)", optional=True
    ),
    Requirement(
        "tracing", probes.tracing, "timings come without the kernel's share", ("root", "bpf", "bcc"), optional=True
    ),
)


def examine(requirements: Iterable[Requirement] = REQUIREMENTS) -> Iterator[Finding]:
    """Probe every requirement in turn; those whose needs are not met are not probed."""
    met: set[str] = set()
    for requirement in requirements:
        lacking = next((name for name in requirement.needs if name not in met), None)
        if lacking is not None:
            yield Finding(requirement.name, State.UNKNOWN, f"not checked without {lacking}")
            continue
        finding = _probe(requirement, requirement.probe)
        if finding.state is State.OK:
            met.add(finding.name)
        yield finding


def require(*names: str) -> None:
    """Raise RequirementMissing, with the doctor's line, for the first of `names` (or of what it needs) that is not met.

    Called by commands before they begin: a few system calls for a name, at most one short process.
    """
    table = {requirement.name: requirement for requirement in REQUIREMENTS}
    for name in names:
        requirement = table[name]
        require(*requirement.needs)
        finding = _probe(requirement, requirement.quick or requirement.probe)
        if finding.state is not State.OK:
            raise RequirementMissing(finding)


def _probe(requirement: Requirement, probe: Callable[[], str]) -> Finding:
    failed = State.OFF if requirement.optional else State.MISSING
    try:
        return Finding(requirement.name, State.OK, probe())
    except ToolMissing as error:
        return Finding(requirement.name, failed, f"{error.tool} not found", error.remedy)
    except ToolError as error:
        # The tool's first line is what the kernel said; which command it was is the requirement's name.
        said = error.stderr.strip().splitlines()
        return Finding(requirement.name, failed, said[0] if said else str(error), requirement.remedy)
    except ReloadlabError as error:
        return Finding(requirement.name, failed, str(error), requirement.remedy)

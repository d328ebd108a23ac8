"""The probes behind the doctor's lines: each returns a word on what it found, or raises the reason (ReloadlabError)."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from pathlib import Path

from datapath.base.bpftypes import MapType
from datapath.errors import ReloadlabError, ToolMissing
from lab.node import registry
from lab.node.topology import MAX_PODS
from lab.system import tools
from lab.system.limits import descriptors_of, raise_locked_memory

# What only one probe needs is imported there: every command asks for the first probe, and should start at once.

STATUS = Path("/proc/self/status")
JIT_ENABLE = Path("/proc/sys/net/core/bpf_jit_enable")
KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
SETTINGS = Path("/proc/sys/net")

# include/uapi/linux/capability.h
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
CAP_SYS_NICE = 23

# include/uapi/linux/bpf.h

FEW_PODS = 16
"""A limit that is too low for so many pods is worth a word before it is met."""

# cBPF "return 0": enough to ask for cls_bpf without a compiler. The form is tc-bpf(8)'s: length, then instructions.
BYTECODE = "'1,6 0 0 0'"
CLSACT = "qdisc add dev lo clsact\n"
FILTER = f"filter add dev lo ingress protocol all prio 1 handle 1 bpf bytecode {BYTECODE}\n"

VLAN = "link add doctor0 type veth peer name doctor1\nlink add link doctor0 name doctor0.1 type vlan id 1\n"


class Unmet(ReloadlabError):
    """A requirement that is not met, in a few words."""


def root() -> str:
    """User 0 with the capabilities that namespaces, mounts and bpf(2) take."""
    uid = os.geteuid()
    if uid != 0:
        raise Unmet(f"user {uid} is not root")
    effective = _capabilities()
    lacking = [name for name, bit in CAPABILITIES.items() if not effective & 1 << bit]
    if lacking:
        raise Unmet(f"user 0 without {', '.join(lacking)}")
    return ", ".join(CAPABILITIES)


def nice() -> str:
    """The capability to run before others, which the traffic takes."""
    if not _capabilities() & 1 << CAP_SYS_NICE:
        raise Unmet("user 0 without CAP_SYS_NICE")
    return "CAP_SYS_NICE"


def _capabilities() -> int:
    lines = dict(line.split(":\t", 1) for line in STATUS.read_text().splitlines())
    return int(lines["CapEff"], 16)


def run_directory() -> str:
    """The directory of all labs, or the nearest one above it that exists: it is made when it is needed."""
    run = registry.run_directory()
    while True:
        there = next(path for path in (run, *run.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise Unmet(f"{there} is not a directory")
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".reloadlab-doctor-", dir=there))
        except OSError as error:
            if not os.path.lexists(there):
                continue  # Whoever removes the last lab removes the directory with it.
            raise Unmet(f"{there} takes no directory: {error.strerror}") from error
        return f"labs can be made in {run}"


def sysctl() -> str:
    """The settings of a network namespace, which a container often has mounted read-only."""
    if os.statvfs(SETTINGS).f_flag & os.ST_RDONLY:
        raise Unmet(f"{SETTINGS} is mounted read-only")
    return f"{SETTINGS} is writable"


def descriptors() -> str:
    """The hard limit on open files: what processes raise their soft limit to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pods = min(hard - descriptors_of(0), MAX_PODS)
    if pods < FEW_PODS:
        raise Unmet(f"at most {hard}, a lab with {FEW_PODS} pods needs {descriptors_of(FEW_PODS)}")
    return f"{hard}, enough for a lab with {pods} pods"


def bpf() -> str:
    """bpf(2) itself, by making the smallest possible map."""
    from datapath.kernel import bpf as kernel

    os.close(kernel.map_create(MapType.ARRAY, 4, 4, 1, name="doctor"))
    return "bpf(2) makes maps"


def memory() -> str:
    """The memory that BPF maps may take. Kernels before 5.11 count it as locked, and a service has little of that."""
    limit = raise_locked_memory()
    if limit == resource.RLIM_INFINITY:
        return "maps of any size"
    if _counts_maps(limit):
        raise Unmet(f"all maps together may have {limit} bytes (RLIMIT_MEMLOCK)")
    return f"maps of any size; {limit} bytes of locked memory do not concern them"


def _counts_maps(limit: int) -> bool:
    """Tell whether this kernel counts BPF maps as locked memory: then there is none where no memory may be locked."""
    from datapath.errors import BpfError
    from datapath.kernel import bpf as kernel

    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, limit))
    try:
        os.close(kernel.map_create(MapType.ARRAY, 4, 4, 1, name="doctor"))
    except BpfError as error:
        if error.errno != errno.EPERM:
            raise
        return True
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    return False


def clock() -> str:
    """The clock that a tick of the kernel moves on, as programs read it."""
    from datapath.kernel.helpers import Helper, is_known

    if not is_known(Helper.KTIME_GET_COARSE_NS):
        raise Unmet("the kernel has no bpf_ktime_get_coarse_ns")
    return "bpf_ktime_get_coarse_ns"


def notify() -> str:
    """That a process can be stopped at its system calls, by seccomp(2)."""
    from lab.gates.forked import check_available

    check_available()
    return "system calls can be gates"


def bpffs() -> str:
    """A BPF file system, mounted where only the child sees it."""
    tools.run(["unshare", "--mount", "mount", "-t", "bpf", "bpf", "/tmp"])
    return "can be mounted"


def jit() -> str:
    """The JIT compiler. Without it everything works and no time means anything."""
    if not JIT_ENABLE.exists():
        raise Unmet("this kernel has no JIT compiler for BPF")
    if JIT_ENABLE.read_text().strip() == "0":
        raise Unmet("programs are interpreted, so times are not those of a node")
    return "programs are compiled"


def btf() -> str:
    """The kernel's own type information."""
    if not KERNEL_BTF.exists():
        raise Unmet(f"no {KERNEL_BTF}")
    return str(KERNEL_BTF)


def tool(name: str) -> str:
    """A program in PATH."""
    try:
        return str(tools.find(name))
    except ToolMissing as error:
        # Debian keeps the administrator's tools out of other users' PATH: installing it again would not help.
        hidden = shutil.which(name, path="/usr/sbin:/sbin")
        if hidden is None:
            raise
        raise ToolMissing(name, f"it is {hidden}: add that directory to PATH") from error


def netns() -> str:
    """A network namespace."""
    links = tools.run(["unshare", "--net", "ip", "-oneline", "link"]).splitlines()
    # With some modules (ipip, sit, ip_gre) every new namespace begins with their fallback tunnels.
    others = [name for line in links if (name := line.split(": ")[1].partition("@")[0]) != "lo"]
    return f"can be made; they begin with {', '.join(others)}" if others else "can be made"


def veth() -> str:
    """A pair of virtual Ethernet devices, in a network namespace that ends with its process."""
    tools.run(["unshare", "--net", "ip", "link", "add", "doctor0", "type", "veth", "peer", "name", "doctor1"])
    return "can be made"


def vxlan() -> str:
    """A VXLAN device that takes its tunnel's key from the program (collect_md), as cilium_vxlan does."""
    tools.run(["unshare", "--net", "ip", "link", "add", "doctor0", "type", "vxlan", "external", "dstport", "8472"])
    return "can be made, external"


def bridge() -> str:
    """A bridge that floods multicast, as the underlay of several nodes."""
    tools.run(["unshare", "--net", "ip", "link", "add", "doctor0", "type", "bridge", "mcast_snooping", "0"])
    return "can be made"


def vlan() -> str:
    """A VLAN device on one that takes them, which `lo` does not."""
    tools.run(["unshare", "--net", "ip", "-batch", "-"], stdin=VLAN)
    return "can be made"


def clsact() -> str:
    """The queueing discipline that programs hang on."""
    _tc(CLSACT)
    return "can be added"


def cls_bpf() -> str:
    """A filter that is a program, on clsact."""
    _tc(CLSACT + FILTER)
    return "can be added"


def _tc(batch: str) -> None:
    # Both lines must meet the same namespace, so one tc reads them.
    tools.run(["unshare", "--net", "tc", "-batch", "-"], stdin=batch)


def tcx() -> str:
    """Links on a device's ingress: asks what is attached to `lo` there, which changes nothing."""
    from datapath.kernel.tcx import is_supported

    if not is_supported():
        raise Unmet("the kernel does not know it")
    return "known to the kernel"


def netkit() -> str:
    """A pair of netkit devices, for pods in the place of a pair of veth (--datapath-mode netkit)."""
    tools.run(["unshare", "--net", "ip", "link", "add", "doctor0", "type", "netkit"])
    return "can be made"


def clang() -> str:
    """A clang that has the BPF target; it compiles an empty file to be sure."""
    from datapath.build.compile import probe_compiler

    compiler = probe_compiler()
    return f"{compiler.path} (version {compiler.major}, -mcpu={compiler.mcpu})"


def bcc() -> str:
    """The BPF Compiler Collection's Python module, and not the package of that name on the Python index."""
    from importlib.util import find_spec

    spec = find_spec("bcc")
    if spec is None or spec.origin is None:
        raise Unmet("no Python module bcc")
    directory = Path(spec.origin).parent
    if not (directory / "libbcc.py").exists():
        raise Unmet(f"{directory} is not the BPF Compiler Collection")
    return str(directory)


def tracing() -> str:
    """The system-call tracepoints, through bcc."""
    from lab.watch.tracing import probe

    reason = probe()
    if reason is not None:
        raise Unmet(reason)
    return "system calls can be timed"

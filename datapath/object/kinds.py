"""The kind of a program by the name of its section, as libbpf tells it (tools/lib/bpf/libbpf.c: section_defs).

A section that libbpf does not know holds a program of tc: that is iproute2's convention, and Cilium's for its entry
programs (`from-container`). Tail calls (`2/7`) are of the kind of the entry programs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from datapath.base.bpftypes import XDP_HAS_FRAGS, ProgType
from datapath.object.spec import parse_slot

_CILIUM_XDP_ENTRY = "cil_xdp_entry"
_XDP_DEVMAP, _XDP_CPUMAP = 33, 35


@dataclass(frozen=True, slots=True)
class ProgramKind:
    """What a section's name says: the type and, for BPF_PROG_LOAD, flags and expected attach type."""

    type: ProgType
    flags: int = 0
    attach_type: int = 0


_TC = ProgramKind(ProgType.SCHED_CLS)

_BY_NAME = {
    "tc/ingress": _TC,
    "tc/egress": _TC,
    "tcx/ingress": _TC,
    "tcx/egress": _TC,
    "netkit/primary": _TC,
    "netkit/peer": _TC,
    "tc": _TC,
    "classifier": _TC,
    "action": ProgramKind(ProgType.SCHED_ACT),
    "xdp": ProgramKind(ProgType.XDP),
    "xdp.frags": ProgramKind(ProgType.XDP, XDP_HAS_FRAGS),
    "xdp/devmap": ProgramKind(ProgType.XDP, 0, _XDP_DEVMAP),
    "xdp.frags/devmap": ProgramKind(ProgType.XDP, XDP_HAS_FRAGS, _XDP_DEVMAP),
    "xdp/cpumap": ProgramKind(ProgType.XDP, 0, _XDP_CPUMAP),
    "xdp.frags/cpumap": ProgramKind(ProgType.XDP, XDP_HAS_FRAGS, _XDP_CPUMAP),
}
"""Whole names, and their first part: `tc/anything` is a tc program."""

_OTHERS = {
    ProgType.SOCKET_FILTER: ("socket",),
    ProgType.SK_REUSEPORT: ("sk_reuseport",),
    ProgType.KPROBE: (
        *("kprobe", "kretprobe", "kprobe.multi", "kretprobe.multi", "kprobe.session", "ksyscall", "kretsyscall"),
        *("uprobe", "uprobe.s", "uretprobe", "uretprobe.s", "uprobe.multi", "uprobe.multi.s", "uretprobe.multi"),
        *("uretprobe.multi.s", "uprobe.session", "uprobe.session.s", "usdt", "usdt.s"),
    ),
    ProgType.TRACEPOINT: ("tracepoint", "tp"),
    ProgType.RAW_TRACEPOINT: ("raw_tracepoint", "raw_tp"),
    ProgType.RAW_TRACEPOINT_WRITABLE: ("raw_tracepoint.w", "raw_tp.w"),
    ProgType.TRACING: (
        *("tp_btf", "fentry", "fexit", "fmod_ret", "fentry.s", "fexit.s", "fmod_ret.s", "iter", "iter.s"),
        *("fsession", "fsession.s"),
    ),
    ProgType.EXT: ("freplace",),
    ProgType.LSM: ("lsm", "lsm.s", "lsm_cgroup"),
    ProgType.SYSCALL: ("syscall",),
    ProgType.PERF_EVENT: ("perf_event",),
    ProgType.LWT_IN: ("lwt_in",),
    ProgType.LWT_OUT: ("lwt_out",),
    ProgType.LWT_XMIT: ("lwt_xmit",),
    ProgType.LWT_SEG6LOCAL: ("lwt_seg6local",),
    ProgType.SOCK_OPS: ("sockops",),
    ProgType.SK_SKB: ("sk_skb",),
    ProgType.SK_MSG: ("sk_msg",),
    ProgType.LIRC_MODE2: ("lirc_mode2",),
    ProgType.FLOW_DISSECTOR: ("flow_dissector",),
    ProgType.CGROUP_SKB: ("cgroup_skb", "cgroup/skb"),
    ProgType.CGROUP_SOCK: tuple(
        f"cgroup/{name}" for name in ("sock", "sock_create", "sock_release", "post_bind4", "post_bind6")
    ),
    ProgType.CGROUP_SOCK_ADDR: tuple(
        f"cgroup/{call}{family}"
        for call in ("bind", "connect", "sendmsg", "recvmsg", "getpeername", "getsockname")
        for family in ("4", "6", "_unix")
    ),
    ProgType.CGROUP_SYSCTL: ("cgroup/sysctl",),
    ProgType.CGROUP_SOCKOPT: ("cgroup/getsockopt", "cgroup/setsockopt"),
    ProgType.CGROUP_DEVICE: ("cgroup/dev",),
    ProgType.STRUCT_OPS: ("struct_ops", "struct_ops.s"),
    ProgType.SK_LOOKUP: ("sk_lookup",),
    ProgType.NETFILTER: ("netfilter",),
}
_BY_NAME.update({name: ProgramKind(kind) for kind, names in _OTHERS.items() for name in names})


_PREFIXES = (
    *("socket", "sk_reuseport", "tc", "classifier", "action", "xdp.frags", "xdp", "perf_event", "sockops", "sk_msg"),
    *("lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local", "lirc_mode2", "flow_dissector", "cgroup_skb", "sk_skb"),
)
"""Names that may go on (`xdp_pass`, `socket1`): so it was up to libbpf 1.0, and so sources spell them to this day."""


def known_kind(section: str) -> ProgramKind | None:
    """Return what libbpf reads in a section's name; None for a name that means nothing to it."""
    whole = name = section.removeprefix("?")  # not loaded unless asked for
    while name:
        if name in _BY_NAME:
            return _BY_NAME[name]
        name = name.rpartition("/")[0]
    prefix = next((prefix for prefix in _PREFIXES if whole.startswith(prefix)), None)
    return None if prefix is None else _BY_NAME[prefix]


def default_kind(programs: Iterable[tuple[str, str]]) -> ProgramKind:
    """Return the kind of programs in sections that libbpf does not know, from (section, function) of all programs.

    Tail calls are of the kind of the entry programs: an array takes none that differ in XDP_HAS_FRAGS. Cilium's own
    loader tells its XDP object, whose entry program is in `from-netdev`, by that program's name (pkg/bpf/collection.go:
    classifyProgramTypes).
    """
    entries = [(section, name) for section, name in programs if parse_slot(section) is None]
    unknown = [name for section, name in entries if known_kind(section) is None]
    kinds = [kind for section, _ in entries if (kind := known_kind(section)) is not None]
    types = {kind.type for kind in kinds}
    only_xdp = ProgType.XDP in types and ProgType.SCHED_CLS not in types and not unknown
    if not only_xdp and _CILIUM_XDP_ENTRY not in unknown:
        return _TC
    frags = only_xdp and all(kind.flags & XDP_HAS_FRAGS for kind in kinds if kind.type is ProgType.XDP)
    return _BY_NAME["xdp.frags" if frags else "xdp"]

from __future__ import annotations

import pytest

from datapath.base.bpftypes import ProgType
from datapath.object.kinds import default_kind, known_kind

SECTIONS = {
    "tc": ProgType.SCHED_CLS,
    "tc/ingress": ProgType.SCHED_CLS,
    "tc/anything": ProgType.SCHED_CLS,
    "classifier": ProgType.SCHED_CLS,
    "classifier/name": ProgType.SCHED_CLS,
    "tcx/egress": ProgType.SCHED_CLS,
    "netkit/primary": ProgType.SCHED_CLS,
    "?tc": ProgType.SCHED_CLS,
    "action": ProgType.SCHED_ACT,
    "xdp": ProgType.XDP,
    "xdp/name": ProgType.XDP,
    "xdp.frags/devmap": ProgType.XDP,
    "socket": ProgType.SOCKET_FILTER,
    "socket/1": ProgType.SOCKET_FILTER,
    "kprobe/vfs_read": ProgType.KPROBE,
    "kprobe.multi/tcp_*": ProgType.KPROBE,
    "uretprobe.s//bin/sh:main": ProgType.KPROBE,
    "tracepoint/syscalls/sys_enter_bpf": ProgType.TRACEPOINT,
    "tp_btf/task_newtask": ProgType.TRACING,
    "raw_tp.w/name": ProgType.RAW_TRACEPOINT_WRITABLE,
    "fentry/name": ProgType.TRACING,
    "freplace/name": ProgType.EXT,
    "lsm.s/bpf": ProgType.LSM,
    "cgroup/skb": ProgType.CGROUP_SKB,
    "cgroup_skb/ingress": ProgType.CGROUP_SKB,
    "cgroup/connect4": ProgType.CGROUP_SOCK_ADDR,
    "cgroup/sock_create": ProgType.CGROUP_SOCK,
    "sk_skb/stream_parser": ProgType.SK_SKB,
    "sockops": ProgType.SOCK_OPS,
    "struct_ops/name": ProgType.STRUCT_OPS,
    "xdp_pass": ProgType.XDP,
    "?xdp_pass": ProgType.XDP,
    "socket1": ProgType.SOCKET_FILTER,
    "tc_ingress": ProgType.SCHED_CLS,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_section_names_are_libbpfs(section: str) -> None:
    kind = known_kind(section)
    assert kind is not None
    assert kind.type == SECTIONS[section]


@pytest.mark.parametrize("section", ["from-container", "2/7", "my_xdp", "kprobes", "cgroup", "", "helpers"])
def test_other_names_say_nothing(section: str) -> None:
    assert known_kind(section) is None


def test_options_of_a_section_go_into_the_load() -> None:
    frags, device, processor = (known_kind(name) for name in ("xdp.frags", "xdp/devmap", "xdp/cpumap"))
    assert frags is not None
    assert device is not None
    assert processor is not None
    assert (frags.flags, frags.attach_type) == (1 << 5, 0)
    assert (device.attach_type, processor.attach_type) == (33, 35)


@pytest.mark.parametrize(("entry", "flags"), [("xdp", 0), ("xdp.frags", 1 << 5)])
def test_tail_calls_are_of_the_kind_of_the_entry_programs(entry: str, flags: int) -> None:
    kind = default_kind([(entry, "cil_xdp_entry"), ("2/7", "tail")])
    assert (kind.type, kind.flags) == (ProgType.XDP, flags)
    mixed = default_kind([(entry, "one"), ("xdp", "two"), ("2/7", "tail")])
    assert (mixed.type, mixed.flags) == (ProgType.XDP, 0)

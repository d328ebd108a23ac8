"""Faults in the kernel's log. What a process writes there has the facility 1, user, and is read like a kernel's."""

from __future__ import annotations

import os

import pytest

from lab.watch.checks.kernel_log import check_kernel_log
from lab.watch.kernel_log import KMSG, KernelLog, LogLine, decode
from tests.lab.labs import unique_name

USER = 1


def say(text: str) -> None:
    """Write a line, whose end makes it visible to readers at once."""
    descriptor = os.open(KMSG, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"<4>{text}\n".encode())
    finally:
        os.close(descriptor)


@pytest.mark.privileged
def test_a_warning_while_the_log_is_open_is_quoted() -> None:
    early, late = unique_name(), unique_name()
    say(f"WARNING: CPU: 1 PID: 7 at {early}")
    with KernelLog(facility=USER) as log:
        say(f"device {late} entered promiscuous mode")
        say(f"WARNING: CPU: 1 PID: 7 at {late}")
        found = [str(violation) for violation in check_kernel_log(log)]
        # Others may write such lines at the same time.
        assert [what for what in found if early in what or late in what] == [
            f"invariant 13: the kernel says: WARNING: CPU: 1 PID: 7 at {late}"
        ]
        assert [what for what in map(str, check_kernel_log(log)) if late in what] == []


@pytest.mark.privileged
def test_a_process_cannot_forge_a_line_of_the_kernel() -> None:
    text = f"BUG: kernel NULL pointer dereference, {unique_name()}"
    with KernelLog() as log, KernelLog(facility=USER) as users:
        say(text)
        assert text in [line.text for line in users.faults()]
        assert text not in [line.text for line in log.faults()]


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: CPU: 1 PID: 7 at net/core/dev.c:3234 skb_warn_bad_offload+0x83/0x100",
        "BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "BUG: KASAN: slab-use-after-free in veth_xmit+0x10/0x20",
        "BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 33s!",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [python3:712]",
        "INFO: task ip:1234 blocked for more than 120 seconds.",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "kernel BUG at mm/slub.c:448!",
        "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "unregister_netdevice: waiting for lo to become free. Usage count = 2",
        "refcount_t: underflow; use-after-free.",
    ],
)
def test_the_first_line_of_a_report_is_a_fault(text: str) -> None:
    assert LogLine(4, 0, 0, text).is_fault


@pytest.mark.parametrize(
    "text",
    [
        "node-1: entered promiscuous mode",
        "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
        "Speculative Return Stack Overflow: WARNING: See https://kernel.org/doc for mitigation options.",
        "[Firmware Bug]: TSC doesn't count with P0 frequency!",
        "SGI XFS with ACLs, security attributes, no debug enabled",
        "kmemleak: Automatic memory scanning thread started",
        "TCP: request_sock_TCP: Possible SYN flooding on port 10.0.0.1:80. Sending cookies.",
    ],
)
def test_what_the_kernel_says_in_good_health_is_none(text: str) -> None:
    assert not LogLine(4, 0, 0, text).is_fault


def test_a_record_has_priority_facility_and_time() -> None:
    line = decode(b"12,339,5140900,-,caller=T1;a text; with a semicolon\n SUBSYSTEM=net\n")
    assert line == LogLine(4, 1, 5140900000, "a text; with a semicolon")

"""The kernel's counters of packets that it lost, per network namespace: /proc/net/dev, snmp, netstat and snmp6.

They say less than the tracepoint does (lab.watch.kernel_drops), but every kernel has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from datapath.kernel.netns import NamespaceNotFound, enter

NetCounters = Mapping[tuple[str, str], int]
"""Counters by namespace and name, such as ("pod-1", "Ip InNoRoutes") or ("node", "lxc1 rx_dropped")."""

_PROC = Path("/proc/thread-self/net")
"""/proc/net shows the namespace of the main thread."""

_DEVICE = {2: "rx_errors", 3: "rx_dropped", 10: "tx_errors", 11: "tx_dropped"}
"""The columns of /proc/net/dev behind the interface's name (net/core/net-procfs.c), from 0 on."""

_LOSSES = frozenset(
    (
        *("Ip InHdrErrors", "Ip InAddrErrors", "Ip InDiscards"),
        *("Ip OutNoRoutes", "Ip ReasmFails", "Ip FragFails", "IpExt InNoRoutes", "IpExt InTruncatedPkts"),
        *("Icmp InCsumErrors", "Udp InErrors", "Udp RcvbufErrors", "Udp InCsumErrors"),
        *("Tcp InErrs", "Tcp InCsumErrors", "TcpExt TCPBacklogDrop", "TcpExt RcvPruned", "TcpExt ListenDrops"),
        *("TcpExt IPReversePathFilter", "TcpExt TCPRcvQDrop"),
        *("Ip6InHdrErrors", "Ip6InTooBigErrors", "Ip6InAddrErrors", "Ip6InTruncatedPkts"),
        *("Ip6InDiscards", "Ip6InNoRoutes", "Ip6OutNoRoutes", "Ip6ReasmFails", "Ip6FragFails"),
        *("Icmp6InCsumErrors", "Udp6InErrors", "Udp6RcvbufErrors", "Udp6InCsumErrors"),
    )
)
"""Counters of packets that are gone.

Others count what was answered (Udp NoPorts, Ip InUnknownProtos), or also what a program at the egress of a device has
dropped on purpose (Ip OutDiscards, Udp SndbufErrors).
"""

_BY_REASON: Mapping[str, frozenset[str]] = {
    "IP_INNOROUTES": frozenset(("IpExt InNoRoutes", "Ip6InNoRoutes")),
    "IP_OUTNOROUTES": frozenset(("Ip OutNoRoutes", "Ip6OutNoRoutes")),
    "IP_INADDRERRORS": frozenset(("Ip InAddrErrors", "Ip6InAddrErrors")),
    "IP_INHDR": frozenset(("Ip InHdrErrors", "Ip6InHdrErrors")),
    "IP_RPFILTER": frozenset(("TcpExt IPReversePathFilter",)),
    "PKT_TOO_BIG": frozenset(("Ip FragFails", "Ip6FragFails", "Ip6InTooBigErrors")),
    "SOCKET_RCVBUFF": frozenset(("Udp InErrors", "Udp RcvbufErrors", "Udp6InErrors", "Udp6RcvbufErrors")),
    "UDP_CSUM": frozenset(("Udp InErrors", "Udp InCsumErrors", "Udp6InErrors", "Udp6InCsumErrors")),
    "TCP_CSUM": frozenset(("Tcp InErrs", "Tcp InCsumErrors")),
    "UNHANDLED_PROTO": frozenset(("rx_dropped",)),
}
"""The counters that a drop for a reason (enum skb_drop_reason) moves; of reasons that are not here, none is known.

Those of devices stand for every device.
"""


def read(namespaces: Mapping[str, Path]) -> NetCounters:
    """Read the counters of losses in each namespace; one that is gone has none."""
    found: dict[tuple[str, str], int] = {}
    for name, path in namespaces.items():
        try:
            with enter(path):
                found |= {(name, counter): value for counter, value in _read()}
        except NamespaceNotFound:
            continue
    return found


def by_reasons(name: str, reasons: Iterable[str]) -> bool:
    """Tell whether drops for one of these reasons move a counter, such as `Ip OutNoRoutes` or `lxc1 rx_dropped`."""
    known = frozenset[str]().union(*(_BY_REASON.get(reason, ()) for reason in reasons))
    return name in known or name.rpartition(" ")[2] in known


def moved(before: NetCounters, now: NetCounters) -> NetCounters:
    """Return the counters that have grown, with what was added; those of new interfaces started from 0."""
    growth = {key: value - before.get(key, 0) for key, value in now.items()}
    return {key: added for key, added in growth.items() if added > 0}


def _read() -> Iterator[tuple[str, int]]:
    for line in (_PROC / "dev").read_text().splitlines()[2:]:
        ifname, _, columns = line.partition(":")
        values = columns.split()
        yield from ((f"{ifname.strip()} {_DEVICE[at]}", int(values[at])) for at in _DEVICE)
    counters = dict(_counters("snmp")) | dict(_counters("netstat"))
    # A SYN to an open connection is no packet that is gone: it was sent again, and is answered (tcp_validate_incoming).
    counters["Tcp InErrs"] -= counters["TcpExt TCPSYNChallenge"]
    yield from ((name, value) for name, value in counters.items() if name in _LOSSES)
    for line in (_PROC / "snmp6").read_text().splitlines():
        key, value = line.split()
        if key in _LOSSES:
            yield key, int(value)


def _counters(table: str) -> Iterator[tuple[str, int]]:
    lines = (_PROC / table).read_text().splitlines()
    # Pairs of lines: names and values, each behind the name of their group.
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        group, *keys = names.split()
        yield from ((f"{group.rstrip(':')} {key}", int(n)) for key, n in zip(keys, values.split()[1:], strict=True))

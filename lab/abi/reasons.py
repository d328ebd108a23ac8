"""Reasons of drops and of forwarding, in the words of Hubble (pkg/monitor/api/drop.go)."""

from __future__ import annotations

from collections.abc import Mapping

FORWARDED, PLAINTEXT = 0, 3
POLICY_DENIED = 133
MISSED_TAIL_CALL = 140
UNKNOWN_TARGET = 150
POLICY_DENIED_BY_DENYLIST = 181

FIRST_DROP = 130
"""The first drop reason (bpf/lib/common.h of Cilium: DROP_MIN)."""

WORDS: Mapping[int, str] = {
    FORWARDED: "Forwarded",
    PLAINTEXT: "Plaintext",
    132: "Invalid source ip",
    POLICY_DENIED: "Policy denied",
    134: "Invalid packet",
    135: "CT: Truncated or invalid header",
    136: "Fragmentation needed",
    137: "CT: Unknown L4 protocol",
    139: "Unsupported L3 protocol",
    MISSED_TAIL_CALL: "Missed tail call",
    141: "Error writing to packet",
    142: "Unknown L4 protocol",
    143: "Unknown ICMPv4 code",
    144: "Unknown ICMPv4 type",
    145: "Unknown ICMPv6 code",
    146: "Unknown ICMPv6 type",
    147: "Error retrieving tunnel key",
    UNKNOWN_TARGET: "Unknown L3 target address",
    151: "Stale or unroutable IP",
    153: "Error while correcting L3 checksum",
    154: "Error while correcting L4 checksum",
    155: "CT: Map insertion failed",
    156: "Invalid IPv6 extension header",
    157: "IP fragmentation not supported",
    158: "Service backend not found",
    160: "No tunnel/encapsulation endpoint (datapath BUG!)",
    163: "Unknown connection tracking state",
    164: "Local host is unreachable",
    166: "Unsupported L2 protocol",
    167: "No mapping for NAT masquerade",
    168: "Unsupported protocol for NAT masquerade",
    169: "FIB lookup failed",
    170: "Encapsulation traffic is prohibited",
    171: "Invalid identity",
    172: "Unknown sender",
    173: "NAT not needed",
    175: "First logical datagram fragment not found",
    176: "Forbidden ICMPv6 message",
    POLICY_DENIED_BY_DENYLIST: "Policy denied by denylist",
    182: "VLAN traffic disallowed by VLAN filter",
    184: "Failed to update or lookup TC buffer",
    196: "TTL exceeded",
    198: "Rate limited",
    202: "Host datapath not ready",
    203: "Endpoint policy program not available",
}
"""Reasons of our programs, and of Cilium's in the configurations that the lab runs; those from 190 on since 1.15."""


def describe(reason: int) -> str:
    """Return the description of a reason."""
    return WORDS.get(reason, f"unknown reason {reason}")

"""The names of the datapath's maps, and what a name says about a map.

Those that only the C needs stand in datapath/build/nodemacros.py, beside their macros.
"""

from __future__ import annotations

import re

from datapath.endpoint import WORLD_ID

ENDPOINTS, IPCACHE, TUNNEL = "cilium_lxc", "cilium_ipcache", "cilium_tunnel_map"
IPCACHE_V2 = "cilium_ipcache_v2"
"""What cilium_ipcache is called since it has room for IPv6 addresses of nodes."""

NODES, NODES_V2 = "cilium_node_map", "cilium_node_map_v2"
"""The ids of nodes by their addresses; the second since 1.16."""

AUTH, L2_RESPONDER = "cilium_auth_map", "cilium_l2_responder_v4"
RATELIMIT, RATELIMIT_METRICS = "cilium_ratelimit", "cilium_ratelimit_metrics"

METRICS, EVENTS, SIGNALS = "cilium_metrics", "cilium_events", "cilium_signals"

POLICY_CALLS, EGRESS_POLICY_CALLS = "cilium_call_policy", "cilium_egresscall_policy"
POLICY_ARRAYS = (POLICY_CALLS, EGRESS_POLICY_CALLS)
"""The program arrays whose slots belong to endpoints, not to objects; every object of the node shares them."""

WRITTEN_BY_AGENT = (ENDPOINTS, IPCACHE, IPCACHE_V2, TUNNEL, NODES, NODES_V2)
"""The maps of a node that its control plane writes all the time, and that every object of the node shares."""

KEPT_WHILE_USED = (*POLICY_ARRAYS, *WRITTEN_BY_AGENT)
"""The maps that stay pinned after they were replaced, as long as programs use them: others write what these read."""

CT_TCP4, CT_ANY4, CT_TCP6, CT_ANY6 = CT_MAPS = (
    *("cilium_ct4_global", "cilium_ct_any4_global"),
    *("cilium_ct6_global", "cilium_ct_any6_global"),
)
"""The maps of connections: of TCP and of everything else, IPv4 and IPv6."""

CONNECTIONS = "cilium_ct"
"""What the names of the maps of connections begin with."""

SNAT4, SNAT6 = "cilium_snat_v4_external", "cilium_snat_v6_external"
FRAGMENTS4, FRAGMENTS6 = "cilium_ipv4_frag_datagrams", "cilium_ipv6_frag_datagrams"

BUFFERS = "cilium_tail_call_buffer"
"""What the names of the buffers begin with in which a program leaves what it knows for its tail calls."""

WRITTEN_BY_PACKETS = (
    *(CONNECTIONS, SNAT4, SNAT6, FRAGMENTS4, FRAGMENTS6, "cilium_lb4_affinity", "cilium_lb6_affinity"),
    *("cilium_nodeport_neigh", "cilium_srv6_state_"),
)
"""What the names of all maps begin with whose entries packets make; counters are not among them."""

POLICY, POLICY_V2 = "cilium_policy_", "cilium_policy_v2_"
"""What the names of the endpoints' policy maps begin with; the endpoint's id follows. The sources say which."""

POLICY_STATS = "cilium_policystats"
"""The counters of all policy maps, where their entries have none."""

XDP_SCRATCH = "cilium_xdp_scratch"
"""What XDP programs have in the place of the words of a socket buffer (bpf/lib/ctx_xdp.h)."""

CIDR4_DYN, CIDR4_FIX, CIDR6_DYN, CIDR6_FIX = CIDR_MAPS = (
    *("cilium_cidr_v4_dyn", "cilium_cidr_v4_fix"),
    *("cilium_cidr_v6_dyn", "cilium_cidr_v6_fix"),
)
"""The maps of the prefilter: shorter prefixes are in a trie, whole addresses in a hash (pkg/datapath/prefilter)."""

_CALLS = "cilium_calls_"
_ENDPOINTS_OWN = re.compile(rf"(?:{_CALLS}(?:hostns_|custom_)?|{POLICY}(?:v2_)?)(\d{{5}})(?=$|:)")
_SHARED_CALLS = f"{_CALLS}xdp"
_DEVICE_CALLS = re.compile(rf"{_CALLS}(netdev|xdp)_(\d+)(?=$|:)")
OVERLAY_CALLS_MAP = f"{_CALLS}overlay_{WORLD_ID}"


def calls_map(number: int, infix: str = "") -> str:
    """Return the name of a calls map: `infix` is "" for a pod, "hostns_", "netdev_" or "xdp_" (pkg/maps/callsmap)."""
    return f"{_CALLS}{infix}{number:05d}"


def netdev_of(name: str) -> int | None:
    """Return the interface whose calls map has this name, or had it before it was moved aside; None for another map."""
    return _device_of(name, "netdev")


def xdp_of(name: str) -> int | None:
    """Return the same for the calls map of an interface's XDP program."""
    return _device_of(name, "xdp")


def _device_of(name: str, kind: str) -> int | None:
    match = _DEVICE_CALLS.match(name)
    return int(match[2]) if match is not None and match[1] == kind else None


def is_calls_map(name: str) -> bool:
    """Tell whether the map belongs to one object and is always migrated.

    At the reference commit the objects of all devices share cilium_calls_xdp, which is not; with a name that has the
    interface's index, each has its own.
    """
    return name.startswith(_CALLS) and name != _SHARED_CALLS


def policy_map(endpoint_id: int) -> str:
    """Return the name of an endpoint's policy map (pkg/maps/policymap)."""
    return f"{POLICY}{endpoint_id:05d}"


def map_names(name: str) -> tuple[str, ...]:
    """Return the names that a map may have which the reference commit calls `name`, the newest first."""
    newer = {IPCACHE: IPCACHE_V2, NODES: NODES_V2}.get(name, name)
    if name.startswith(POLICY):
        newer = name.replace(POLICY, POLICY_V2, 1)
    return (name,) if newer == name else (newer, name)


def policy_maps(endpoint_id: int) -> tuple[str, ...]:
    """Return the names that an endpoint's policy map may have, the newest first."""
    return map_names(policy_map(endpoint_id))


def is_policy_map(name: str) -> bool:
    """Tell whether the map is an endpoint's policy map, also one that was moved aside."""
    return name.startswith(POLICY) and endpoint_of(name) is not None


def is_written_while_used(name: str) -> bool:
    """Tell whether the control plane writes the map wherever it is pinned, for the programs of one subject alone."""
    return is_policy_map(name) or name in CIDR_MAPS


def is_written_by_agent(name: str) -> bool:
    """Tell whether the entries of the map are the control plane's: none of them may be left out."""
    return name in WRITTEN_BY_AGENT or is_written_while_used(name)


def endpoint_of(name: str) -> int | None:
    """Return the endpoint that a map of this name belongs to, also one that was moved aside; None for another map."""
    match = _ENDPOINTS_OWN.match(name)
    return int(match[1]) if match is not None else None


def endpoint_maps(endpoint_id: int) -> tuple[str, ...]:
    """Return the names of the maps that a pod has for itself; not every build makes all of them."""
    return calls_map(endpoint_id), calls_map(endpoint_id, "custom_"), *policy_maps(endpoint_id)

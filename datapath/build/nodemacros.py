"""The macros of node_config.h: what the node is, what its maps are called and how large they are.

Names and numbers follow WriteNodeConfig (pkg/datapath/linux/config/config.go) and pkg/maps; every name that the
programs could ask for is defined, whatever the options, so that switching an option on needs no further macro.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from datapath.base import mapnames
from datapath.endpoint import HEALTH_ID, HOST_ID, REMOTE_NODE_ID, WORLD_ID, NodeConfig, Vlan
from datapath.errors import InvalidName

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")

HOST_ENDPOINT_ID = 1
"""HOST_EP_ID where the node's options do not say another one. The programs want it at compile time: it is a slot."""

_FEATURES = {
    "ENABLE_IPV4": "1",
    "ENABLE_IPV6": "1",
    "ENABLE_IDENTITY_MARK": "1",
    # What Cilium's default configuration turns on (pkg/option; 3 is monitor aggregation medium).
    "DROP_NOTIFY": "1",
    "TRACE_NOTIFY": "1",
    "POLICY_VERDICT_NOTIFY": "1",
    "MONITOR_AGGREGATION": "3",
    "CONNTRACK_ACCOUNTING": "1",
    "POLICY_ACCOUNTING": "1",
    "ENABLE_ICMP_RULE": "1",
}

_IDENTITIES = {
    "UNKNOWN_ID": 0,
    "HOST_ID": HOST_ID,
    "WORLD_ID": WORLD_ID,
    # With one IP version alone these are the world's as well; the control plane here has one world for both.
    "WORLD_IPV4_ID": WORLD_ID,
    "WORLD_IPV6_ID": WORLD_ID,
    "UNMANAGED_ID": 3,
    "HEALTH_ID": HEALTH_ID,
    "INIT_ID": 5,
    "LOCAL_NODE_ID": REMOTE_NODE_ID,
    "REMOTE_NODE_ID": REMOTE_NODE_ID,
    "KUBE_APISERVER_NODE_ID": 7,
    "ENCRYPTED_OVERLAY_ID": 11,
    "CIDR_IDENTITY_RANGE_START": (1 << 24) + 1,
    "CIDR_IDENTITY_RANGE_END": (1 << 24) + (1 << 16) - 1,
}

_MAPS = {
    "ENDPOINTS_MAP": mapnames.ENDPOINTS,
    "METRICS_MAP": mapnames.METRICS,
    "IPCACHE_MAP": mapnames.IPCACHE,
    "NODE_MAP": mapnames.NODES,
    "NODE_MAP_V2": mapnames.NODES_V2,
    "L2_RESPONDER_MAP4": mapnames.L2_RESPONDER,
    "RATELIMIT_MAP": mapnames.RATELIMIT,
    "RATELIMIT_METRICS_MAP": mapnames.RATELIMIT_METRICS,
    "WORLD_CIDRS4_MAP": "cilium_world_cidrs4",
    "LB4_SKIP_MAP": "cilium_skip_lb4",
    "LB6_SKIP_MAP": "cilium_skip_lb6",
    "TUNNEL_MAP": mapnames.TUNNEL,
    "EVENTS_MAP": mapnames.EVENTS,
    "SIGNAL_MAP": mapnames.SIGNALS,
    "POLICY_CALL_MAP": mapnames.POLICY_CALLS,
    "POLICY_EGRESSCALL_MAP": mapnames.EGRESS_POLICY_CALLS,
    "AUTH_MAP": mapnames.AUTH,
    "CONFIG_MAP": "cilium_runtime_config",
    "ENCRYPT_MAP": "cilium_encrypt_state",
    "VTEP_MAP": "cilium_vtep_map",
    "THROTTLE_MAP": "cilium_throttle",
    "EGRESS_POLICY_MAP": "cilium_egress_gw_policy_v4",
    "IP_MASQ_AGENT_IPV4": "cilium_ipmasq_v4",
    "IPV4_FRAG_DATAGRAMS_MAP": mapnames.FRAGMENTS4,
    "CT_TAIL_CALL_BUFFER4": "cilium_tail_call_buffer4",
    "CT_TAIL_CALL_BUFFER6": "cilium_tail_call_buffer6",
    "PER_CLUSTER_CT_TCP4": "cilium_per_cluster_ct_tcp4",
    "PER_CLUSTER_CT_TCP6": "cilium_per_cluster_ct_tcp6",
    "PER_CLUSTER_CT_ANY4": "cilium_per_cluster_ct_any4",
    "PER_CLUSTER_CT_ANY6": "cilium_per_cluster_ct_any6",
    "PER_CLUSTER_SNAT_MAPPING_IPV4": "cilium_per_cluster_snat_v4_external",
    "PER_CLUSTER_SNAT_MAPPING_IPV6": "cilium_per_cluster_snat_v6_external",
    "SNAT_MAPPING_IPV4": mapnames.SNAT4,
    "SNAT_MAPPING_IPV6": mapnames.SNAT6,
    "NODEPORT_NEIGH4": "cilium_nodeport_neigh4",
    "NODEPORT_NEIGH6": "cilium_nodeport_neigh6",
    "CAPTURE4_RULES": "cilium_capture4_rules",
    "CAPTURE6_RULES": "cilium_capture6_rules",
    "SRV6_VRF_MAP4": "cilium_srv6_vrf_v4",
    "SRV6_VRF_MAP6": "cilium_srv6_vrf_v6",
    "SRV6_POLICY_MAP4": "cilium_srv6_policy_v4",
    "SRV6_POLICY_MAP6": "cilium_srv6_policy_v6",
    "SRV6_SID_MAP": "cilium_srv6_sid",
    "SRV6_STATE_MAP4": "cilium_srv6_state_v4",
    "SRV6_STATE_MAP6": "cilium_srv6_state_v6",
    "LB_AFFINITY_MATCH_MAP": "cilium_lb_affinity_match",
}

_LB_MAPS = {
    "REVERSE_NAT_MAP": "reverse_nat",
    "SERVICES_MAP_V2": "services_v2",
    "BACKEND_MAP": "backends_v3",
    "REVERSE_NAT_SK_MAP": "reverse_sk",
    "AFFINITY_MAP": "affinity",
    "MAGLEV_MAP_OUTER": "maglev",
    "SRC_RANGE_MAP": "source_range",
    "HEALTH_MAP": "health",
}

_SIZES = {
    "ENDPOINTS_MAP_SIZE": 65535,
    "METRICS_MAP_SIZE": 1024,
    "IPCACHE_MAP_SIZE": 512000,
    "NODE_MAP_SIZE": 16384,
    "TUNNEL_ENDPOINT_MAP_SIZE": 65536,
    # Upstream's former spelling, and today's.
    "L2_RESPONSER_MAP4_SIZE": 4096,
    "L2_RESPONDER_MAP4_SIZE": 4096,
    "L2_RESPONDER_MAP6_SIZE": 4096,
    "WORLD_CIDRS4_MAP_SIZE": 16384,
    "POLICY_STATS_MAP_SIZE": 65536,
    "POLICY_MAP_SIZE": 16384,
    # A template's id, 65535, must not fit.
    "POLICY_PROG_MAP_SIZE": 65535,
    "AUTH_MAP_SIZE": 524288,
    "CONFIG_MAP_SIZE": 256,
    "VTEP_MAP_SIZE": 8,
    "THROTTLE_MAP_SIZE": 65536,
    "EGRESS_POLICY_MAP_SIZE": 16384,
    "SRV6_VRF_MAP_SIZE": 16384,
    "SRV6_POLICY_MAP_SIZE": 16384,
    "SRV6_SID_MAP_SIZE": 16384,
    "SRV6_STATE_MAP_SIZE": 16384,
    "SNAT_MAPPING_IPV4_SIZE": 65536,
    "SNAT_MAPPING_IPV6_SIZE": 65536,
    "NODEPORT_NEIGH4_SIZE": 65536,
    "NODEPORT_NEIGH6_SIZE": 65536,
    "CAPTURE4_SIZE": 16384,
    "CAPTURE6_SIZE": 16384,
    "LB4_REVERSE_NAT_SK_MAP_SIZE": 65536,
    "LB6_REVERSE_NAT_SK_MAP_SIZE": 65536,
    "LB4_SRC_RANGE_MAP_SIZE": 65536,
    "LB6_SRC_RANGE_MAP_SIZE": 65536,
    "LB_MAGLEV_LUT_SIZE": 16381,
    "CILIUM_IPV4_FRAG_MAP_MAX_ENTRIES": 8192,
    "CILIUM_IPV6_FRAG_MAP_MAX_ENTRIES": 8192,
    "CILIUM_LB_SKIP_MAP_MAX_ENTRIES": 100,
    "CILIUM_LB_ACT_MAP_MAX_ENTRIES": 65536,
    "CILIUM_LB_SERVICE_MAP_MAX_ENTRIES": 65536,
    "CILIUM_LB_BACKENDS_MAP_MAX_ENTRIES": 65536,
    "CILIUM_LB_REV_NAT_MAP_MAX_ENTRIES": 65536,
    "CILIUM_LB_AFFINITY_MAP_MAX_ENTRIES": 65536,
    "CILIUM_LB_SOURCE_RANGE_MAP_MAX_ENTRIES": 65536,
    "CILIUM_LB_MAGLEV_MAP_MAX_ENTRIES": 65536,
}

_TUNNEL_PROTOCOLS = {
    "TUNNEL_PROTOCOL_VXLAN": "1",
    "TUNNEL_PROTOCOL_GENEVE": "2",
    "TUNNEL_PROTOCOL": "TUNNEL_PROTOCOL_VXLAN",
}

_CONNTRACK = {
    # Seconds.
    "CT_CONNECTION_LIFETIME_TCP": "21600",
    "CT_CONNECTION_LIFETIME_NONTCP": "60",
    "CT_SERVICE_LIFETIME_TCP": "21600",
    "CT_SERVICE_LIFETIME_NONTCP": "60",
    "CT_SERVICE_CLOSE_REBALANCE": "30",
    "CT_SYN_TIMEOUT": "60",
    "CT_CLOSE_TIMEOUT": "10",
    "CT_REPORT_INTERVAL": "5",
    # TCP flags whose change is reported: SYN, RST, FIN.
    "CT_REPORT_FLAGS": "0x0007",
}

_NODEPORT = {
    "NODEPORT_PORT_MIN": "30000",
    "NODEPORT_PORT_MAX": "32767",
    "NODEPORT_PORT_MIN_NAT": "32768",
    "NODEPORT_PORT_MAX_NAT": "65535",
    "EPHEMERAL_MIN": "32768",
    "DSR_ENCAP_NONE": "1",
    "DSR_ENCAP_IPIP": "2",
    "DSR_ENCAP_GENEVE": "3",
    "DSR_ENCAP_MODE": "0",
    "DSR_XLATE_FRONTEND": "1",
    "DSR_XLATE_BACKEND": "2",
    "DSR_XLATE_MODE": "0",
    "DIRECT_ROUTING_DEV_IFINDEX": "0",
    "IPV4_DIRECT_ROUTING": "0",
    "IPV6_DIRECT_ROUTING": "{ .addr = { 0x0 } }",
    "IPV4_RSS_PREFIX": "IPV4_DIRECT_ROUTING",
    "IPV4_RSS_PREFIX_BITS": "32",
    "IPV6_RSS_PREFIX": "IPV6_DIRECT_ROUTING",
    "IPV6_RSS_PREFIX_BITS": "128",
    "IPV4_SNAT_EXCLUSION_DST_CIDR": "0x0000ffff",
    "IPV4_SNAT_EXCLUSION_DST_CIDR_LEN": "16",
    "LB_SELECTION_RANDOM": "1",
    "LB_SELECTION_MAGLEV": "2",
    "LB_SELECTION_FIRST": "3",
    "LB_SELECTION": "1",
    "SNAT_COLLISION_RETRIES": "32",
    "NAT_46X64_PREFIX_0": "0",
    "NAT_46X64_PREFIX_1": "0",
    "NAT_46X64_PREFIX_2": "0",
    "NAT_46X64_PREFIX_3": "0",
    # Seeds of the maglev hash (pkg/maglev, default seed); any pair does for one node.
    "HASH_INIT4_SEED": "0xcafe",
    "HASH_INIT6_SEED": "0xeb9f",
}

GLOBAL_CT_MACROS = {
    "CT_MAP_TCP4": mapnames.CT_TCP4,
    "CT_MAP_ANY4": mapnames.CT_ANY4,
    "CT_MAP_TCP6": mapnames.CT_TCP6,
    "CT_MAP_ANY6": mapnames.CT_ANY6,
    # These tables are preallocated: Cilium's 524288 and 262144 would cost every lab 200 MB of kernel memory.
    "CT_MAP_SIZE_TCP": "32768",
    "CT_MAP_SIZE_ANY": "16384",
}
"""The connection tracking maps that all endpoints share (ctmap.WriteBPFMacros)."""


def node_macros(node: NodeConfig, devices: Collection[str] = ()) -> dict[str, str]:
    """Return our macros for a node with these native devices; `node.options` are not in it."""
    macros = {**_FEATURES, **_MAPS, **_TUNNEL_PROTOCOLS, **_CONNTRACK, **_NODEPORT}
    macros |= {name: str(number) for table in (_IDENTITIES, _SIZES) for name, number in table.items()}
    macros |= {f"LB{v}_{name}": f"cilium_lb{v}_{tail}" for v in (4, 6) for name, tail in _LB_MAPS.items()}
    macros |= {
        "CLUSTER_ID": "0",
        "CLUSTER_ID_MAX": "255",
        # 0 is no limit.
        "EVENTS_MAP_RATE_LIMIT": "0",
        "EVENTS_MAP_BURST_LIMIT": "0",
        "HOST_EP_ID": str(HOST_ENDPOINT_ID),
        "MTU": str(node.mtu),
        "TRACE_PAYLOAD_LEN": "128ULL",
        "KERNEL_HZ": "250",
        # "To the host" is transmitting on cilium_net: the packet arrives on cilium_host.
        "HOST_IFINDEX": str(node.cilium_net_ifindex),
        "HOST_IFINDEX_MAC": _address(node.cilium_host_mac),
        "CILIUM_IFINDEX": str(node.cilium_host_ifindex),
        "CILIUM_NET_MAC": _address(node.cilium_net_mac),
        "CILIUM_NET_IFINDEX": str(node.cilium_net_ifindex),
        "CILIUM_HOST_IFINDEX": str(node.cilium_host_ifindex),
        "CILIUM_HOST_MAC": _address(node.cilium_host_mac),
        "NATIVE_DEV_MAC_BY_IFINDEX(IFINDEX)": "{ .addr = { 0x0 } }",
        "IS_L3_DEV(ifindex)": "false",
        "VLAN_FILTER(ifindex, vlan_id)": _vlan_filter(node.vlans, devices),
        "IPV4_GATEWAY": f"{int.from_bytes(node.router_ipv4.packed, 'little'):#x}",
        "IPV4_LOOPBACK": "0x12afea9",
        "IPV4_MASK": f"{_network_mask(node.pod_prefix4):#x}",
        "IPV4_ENCRYPT_IFACE": "0",
        "VTEP_MASK": "0xffffff",
        "TUNNEL_PORT": str(node.tunnel_port),
    }
    if node.encap_ifindex is not None:
        macros |= {"ENCAP_IFINDEX": str(node.encap_ifindex), "TUNNEL_MODE": "1"}
    if node.endpoint_routes:
        macros["ENABLE_ENDPOINT_ROUTES"] = "1"
    return macros


def _vlan_filter(vlans: Iterable[Vlan], devices: Collection[str]) -> str:
    """Return the statement that lets frames of a VLAN pass if its device is a native device (vlanFilterMacros)."""
    passing = sorted((vlan.link, vlan.id) for vlan in vlans if vlan.name in devices)
    tests = [f"(ifindex == {link} && vlan_id == {number})" for link, number in passing]
    return f"return {' || '.join(tests) or 'false'};"


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of aa:bb:cc:dd:ee:ff; InvalidName if it is none."""
    if not _MAC.fullmatch(mac):
        raise InvalidName("MAC address", mac, "six bytes as aa:bb:cc:dd:ee:ff")
    return bytes.fromhex(mac.replace(":", ""))


def c_list(packed: bytes) -> str:
    """Return the bytes as they stand between the braces of a C array."""
    return ", ".join(f"{byte:#x}" for byte in packed)


def _network_mask(prefix: int) -> int:
    """Return a netmask in network order, read as a little-endian word."""
    return int.from_bytes((~(0xFFFFFFFF >> prefix) & 0xFFFFFFFF).to_bytes(4, "big"), "little")


def _address(mac: str) -> str:
    return f"{{ .addr = {{ {c_list(mac_bytes(mac))} }} }}"

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_CONFIG_H
#define RELOADLAB_CONFIG_H

/*
 * Every macro that configures the programs, and what it is when nobody defines it.
 * They come from node_config.h (the node), ep_config.h (pod or host endpoint),
 * netdev_config.h (overlay) or the command line; this file is included after those.
 *
 * Address families
 *   ENABLE_IPV4, ENABLE_IPV6	handle the family; without it its packets are an unknown L3 protocol
 *   ENABLE_IPV4_FRAGMENTS	track IPv4 fragments instead of dropping them (157)
 *   ENABLE_IPV6_FRAGMENTS	the same for IPv6
 *   ENABLE_ARP_PASSTHROUGH	leave ARP of a pod to the host's stack; otherwise the programs answer it
 *
 * Routing mode
 *   ENABLE_ROUTING		endpoint routes are off: a pod's program looks up local destinations itself
 *   USE_BPF_PROG_FOR_INGRESS_POLICY
 *				endpoint routes are on: what goes to a pod passes the egress program of its device
 *   ENABLE_HOST_ROUTING	from-netdev delivers to local pods itself instead of leaving it to the stack
 *   ENABLE_HOST_FIREWALL	policy for what reaches or leaves the host itself
 *   TUNNEL_MODE		remote pods are reached through ENCAP_IFINDEX
 *   LOCAL_DELIVERY_METRICS	count a packet as forwarded before it is handed to a local pod's program
 *
 * Events (cilium_events)
 *   DROP_NOTIFY, TRACE_NOTIFY, POLICY_VERDICT_NOTIFY
 *				report dropped packets, forwarded packets, decisions of the policy
 *   MONITOR_AGGREGATION	which traces are left out, see trace.h
 *   TRACE_PAYLOAD_LEN		bytes of the packet that go with an event, at most
 *   POLICY_VERDICT_LOG_FILTER	whose decisions are reported: 1 ingress, 2 egress
 *
 * Connection tracking, in seconds
 *   CT_CONNECTION_LIFETIME_TCP, CT_CONNECTION_LIFETIME_NONTCP
 *				of a connection without packets
 *   CT_SYN_TIMEOUT		of one that has had nothing but SYNs
 *   CT_CLOSE_TIMEOUT		of one that is closed
 *   CT_REPORT_INTERVAL		how often a connection is traced; at once when it shows new TCP flags of
 *   CT_REPORT_FLAGS		this set
 *
 * The node
 *   MTU			of the pods' devices; the tunnel takes TUNNEL_OVERHEAD less
 *   HOST_EP_ID			id of the host endpoint
 *   HOST_IFINDEX, CILIUM_NET_MAC	cilium_net: transmitting there arrives at cilium_host
 *   HOST_IFINDEX_MAC		MAC of cilium_host, as an initialiser of union macaddr
 *   ENCAP_IFINDEX		the tunnel device
 *   IPV4_MASK			the part of an address that names its node, in network order
 *
 * The endpoint
 *   LXC_ID, LXC_IPV4, LXC_IP	id, IPv4 address (network order), IPv6 address (four words LXC_IP_1..4)
 *   SECLABEL			security identity
 *   NODE_MAC			MAC of the host side of its device
 *   GENERATION			number of the load, see hits.h
 */

#ifndef GENERATION
# define GENERATION 0
#endif /* GENERATION */

#ifdef ENCAP_IFINDEX
# ifdef TUNNEL_MODE
#  define USE_TUNNEL 1
# endif /* TUNNEL_MODE */
#endif /* ENCAP_IFINDEX */

/* Outer IPv4, UDP and VXLAN headers, inner Ethernet header. */
#define TUNNEL_OVERHEAD 50
#ifndef MTU
# define MTU 1500
#endif /* MTU */
#ifndef HOST_EP_ID
# define HOST_EP_ID 1
#endif /* HOST_EP_ID */

/* Which program an event is from: set by the sources. */
#ifndef EVENT_SOURCE
# define EVENT_SOURCE 0
#endif /* EVENT_SOURCE */
#ifndef MONITOR_AGGREGATION
# define MONITOR_AGGREGATION 0
#endif /* MONITOR_AGGREGATION */
#ifndef TRACE_PAYLOAD_LEN
# define TRACE_PAYLOAD_LEN 128ULL
#endif /* TRACE_PAYLOAD_LEN */
#ifndef POLICY_VERDICT_LOG_FILTER
# define POLICY_VERDICT_LOG_FILTER 0xffff
#endif /* POLICY_VERDICT_LOG_FILTER */
#ifndef __NR_CPUS__
# define __NR_CPUS__ 0		/* as many as there are */
#endif /* __NR_CPUS__ */

#ifndef CT_CONNECTION_LIFETIME_TCP
# define CT_CONNECTION_LIFETIME_TCP 21600
#endif /* CT_CONNECTION_LIFETIME_TCP */
#ifndef CT_CONNECTION_LIFETIME_NONTCP
# define CT_CONNECTION_LIFETIME_NONTCP 60
#endif /* CT_CONNECTION_LIFETIME_NONTCP */
#ifndef CT_SYN_TIMEOUT
# define CT_SYN_TIMEOUT 60
#endif /* CT_SYN_TIMEOUT */
#ifndef CT_CLOSE_TIMEOUT
# define CT_CLOSE_TIMEOUT 10
#endif /* CT_CLOSE_TIMEOUT */
#ifndef CT_REPORT_INTERVAL
# define CT_REPORT_INTERVAL 5
#endif /* CT_REPORT_INTERVAL */
#ifndef CT_REPORT_FLAGS
# define CT_REPORT_FLAGS 0x07	/* FIN, SYN, RST */
#endif /* CT_REPORT_FLAGS */

/* Reserved identities; node_config.h defines them as well, with the same numbers. */
#ifndef HOST_ID
# define HOST_ID 1
#endif /* HOST_ID */
#ifndef WORLD_ID
# define WORLD_ID 2
#endif /* WORLD_ID */
#ifndef REMOTE_NODE_ID
# define REMOTE_NODE_ID 6
#endif /* REMOTE_NODE_ID */
#ifndef KUBE_APISERVER_NODE_ID
# define KUBE_APISERVER_NODE_ID 7
#endif /* KUBE_APISERVER_NODE_ID */

/*
 * Names and sizes of the pinned maps. Names that belong to one endpoint or object
 * (CALLS_MAP, POLICY_MAP) come from its header only.
 */
#ifndef ENDPOINTS_MAP
# define ENDPOINTS_MAP cilium_lxc
#endif /* ENDPOINTS_MAP */
#ifndef ENDPOINTS_MAP_SIZE
# define ENDPOINTS_MAP_SIZE 65535
#endif /* ENDPOINTS_MAP_SIZE */
#ifndef METRICS_MAP
# define METRICS_MAP cilium_metrics
#endif /* METRICS_MAP */
#ifndef METRICS_MAP_SIZE
# define METRICS_MAP_SIZE 1024
#endif /* METRICS_MAP_SIZE */
#ifndef POLICY_CALL_MAP
# define POLICY_CALL_MAP cilium_call_policy
#endif /* POLICY_CALL_MAP */
#ifndef POLICY_PROG_MAP_SIZE
# define POLICY_PROG_MAP_SIZE 65535
#endif /* POLICY_PROG_MAP_SIZE */
#ifndef IPCACHE_MAP
# define IPCACHE_MAP cilium_ipcache
#endif /* IPCACHE_MAP */
#ifndef IPCACHE_MAP_SIZE
# define IPCACHE_MAP_SIZE 512000
#endif /* IPCACHE_MAP_SIZE */
#ifndef TUNNEL_MAP
# define TUNNEL_MAP cilium_tunnel_map
#endif /* TUNNEL_MAP */
#ifndef TUNNEL_ENDPOINT_MAP_SIZE
# define TUNNEL_ENDPOINT_MAP_SIZE 65535
#endif /* TUNNEL_ENDPOINT_MAP_SIZE */
#ifndef POLICY_MAP_SIZE
# define POLICY_MAP_SIZE 16384
#endif /* POLICY_MAP_SIZE */
#ifndef EVENTS_MAP
# define EVENTS_MAP cilium_events
#endif /* EVENTS_MAP */
#ifndef CT_MAP_TCP4
# define CT_MAP_TCP4 cilium_ct4_global
#endif /* CT_MAP_TCP4 */
#ifndef CT_MAP_ANY4
# define CT_MAP_ANY4 cilium_ct_any4_global
#endif /* CT_MAP_ANY4 */
#ifndef CT_MAP_TCP6
# define CT_MAP_TCP6 cilium_ct6_global
#endif /* CT_MAP_TCP6 */
#ifndef CT_MAP_ANY6
# define CT_MAP_ANY6 cilium_ct_any6_global
#endif /* CT_MAP_ANY6 */
#ifndef CT_MAP_SIZE_TCP
# define CT_MAP_SIZE_TCP 32768
#endif /* CT_MAP_SIZE_TCP */
#ifndef CT_MAP_SIZE_ANY
# define CT_MAP_SIZE_ANY 16384
#endif /* CT_MAP_SIZE_ANY */
#ifndef IPV4_FRAG_DATAGRAMS_MAP
# define IPV4_FRAG_DATAGRAMS_MAP cilium_ipv4_frag_datagrams
#endif /* IPV4_FRAG_DATAGRAMS_MAP */
#ifndef IPV6_FRAG_DATAGRAMS_MAP
# define IPV6_FRAG_DATAGRAMS_MAP cilium_ipv6_frag_datagrams
#endif /* IPV6_FRAG_DATAGRAMS_MAP */
#ifndef CILIUM_IPV4_FRAG_MAP_MAX_ENTRIES
# define CILIUM_IPV4_FRAG_MAP_MAX_ENTRIES 8192
#endif /* CILIUM_IPV4_FRAG_MAP_MAX_ENTRIES */
#ifndef CT_TAIL_CALL_BUFFER4
# define CT_TAIL_CALL_BUFFER4 cilium_tail_call_buffer4
#endif /* CT_TAIL_CALL_BUFFER4 */
#ifndef CT_TAIL_CALL_BUFFER6
# define CT_TAIL_CALL_BUFFER6 cilium_tail_call_buffer6
#endif /* CT_TAIL_CALL_BUFFER6 */
#ifndef HITS_MAP
# define HITS_MAP reloadlab_hits
#endif /* HITS_MAP */
#ifndef HITS_MAP_SIZE
# define HITS_MAP_SIZE 4096
#endif /* HITS_MAP_SIZE */

#ifndef XDP_SCRATCH_MAP
# define XDP_SCRATCH_MAP cilium_xdp_scratch
#endif /* XDP_SCRATCH_MAP */

/* The maps of the prefilter: whole addresses are in a hash, shorter prefixes in a trie. */
#ifndef CIDR4_HMAP_NAME
# define CIDR4_HMAP_NAME cilium_cidr_v4_fix
#endif /* CIDR4_HMAP_NAME */
#ifndef CIDR4_LMAP_NAME
# define CIDR4_LMAP_NAME cilium_cidr_v4_dyn
#endif /* CIDR4_LMAP_NAME */
#ifndef CIDR6_HMAP_NAME
# define CIDR6_HMAP_NAME cilium_cidr_v6_fix
#endif /* CIDR6_HMAP_NAME */
#ifndef CIDR6_LMAP_NAME
# define CIDR6_LMAP_NAME cilium_cidr_v6_dyn
#endif /* CIDR6_LMAP_NAME */
#ifndef CIDR4_HMAP_ELEMS
# define CIDR4_HMAP_ELEMS 65536	/* Cilium's 20971520 would cost 512 MB of buckets */
#endif /* CIDR4_HMAP_ELEMS */
#ifndef CIDR4_LMAP_ELEMS
# define CIDR4_LMAP_ELEMS 65536
#endif /* CIDR4_LMAP_ELEMS */

/*
 * Variations for scenarios, given with -D. None is on by default.
 *
 * A map that differs from the pinned one in exactly one property, for map migration:
 * the policy map stands for a map of one endpoint, ipcache and tunnel map for shared
 * ones. Traffic on one node flows on while they are empty. Besides the *_SIZE above:
 *   POLICY_MAP_TYPE, IPCACHE_MAP_TYPE	BPF_MAP_TYPE_LPM_TRIE; BPF_MAP_TYPE_HASH works as well
 *   TUNNEL_MAP_TYPE			BPF_MAP_TYPE_HASH; BPF_MAP_TYPE_LRU_HASH needs TUNNEL_MAP_FLAGS=0
 *   POLICY_MAP_FLAGS, IPCACHE_MAP_FLAGS, TUNNEL_MAP_FLAGS
 *					BPF_F_NO_PREALLOC; "(BPF_F_NO_PREALLOC | BPF_F_NUMA_NODE)" loads too
 *   POLICY_KEY_PAD, IPCACHE_KEY_PAD, TUNNEL_KEY_PAD
 *					words of 32 bits appended to the key
 *   POLICY_VALUE_PAD, IPCACHE_VALUE_PAD, TUNNEL_VALUE_PAD
 *					words of 32 bits appended to the value (POLICY_VALUE_PAD: of 64)
 *
 * The maps of connections as another type: BPF_MAP_TYPE_HASH, which refuses new entries when it is full
 *   CT_MAP_TYPE			BPF_MAP_TYPE_LRU_HASH
 *
 * The slots of tail calls as another release might number them: those of IPv4 and IPv6 change places
 *   RENUMBERED_SLOTS	a program of one numbering must never jump through a calls map of the other
 *
 * A program that cannot be loaded:
 *   REJECTED_BY_VERIFIER	add a tail program (slot 8) that reads packet data without a bounds check
 */
#ifndef CT_MAP_TYPE
# define CT_MAP_TYPE BPF_MAP_TYPE_LRU_HASH
#endif /* CT_MAP_TYPE */
#ifndef POLICY_MAP_TYPE
# define POLICY_MAP_TYPE BPF_MAP_TYPE_LPM_TRIE
#endif /* POLICY_MAP_TYPE */
#ifndef POLICY_MAP_FLAGS
# define POLICY_MAP_FLAGS BPF_F_NO_PREALLOC
#endif /* POLICY_MAP_FLAGS */
#ifndef POLICY_KEY_PAD
# define POLICY_KEY_PAD 0
#endif /* POLICY_KEY_PAD */
#ifndef POLICY_VALUE_PAD
# define POLICY_VALUE_PAD 0
#endif /* POLICY_VALUE_PAD */
#ifndef IPCACHE_MAP_TYPE
# define IPCACHE_MAP_TYPE BPF_MAP_TYPE_LPM_TRIE
#endif /* IPCACHE_MAP_TYPE */
#ifndef IPCACHE_MAP_FLAGS
# define IPCACHE_MAP_FLAGS BPF_F_NO_PREALLOC
#endif /* IPCACHE_MAP_FLAGS */
#ifndef IPCACHE_KEY_PAD
# define IPCACHE_KEY_PAD 0
#endif /* IPCACHE_KEY_PAD */
#ifndef IPCACHE_VALUE_PAD
# define IPCACHE_VALUE_PAD 0
#endif /* IPCACHE_VALUE_PAD */
#ifndef TUNNEL_MAP_TYPE
# define TUNNEL_MAP_TYPE BPF_MAP_TYPE_HASH
#endif /* TUNNEL_MAP_TYPE */
#ifndef TUNNEL_MAP_FLAGS
# define TUNNEL_MAP_FLAGS BPF_F_NO_PREALLOC
#endif /* TUNNEL_MAP_FLAGS */
#ifndef TUNNEL_KEY_PAD
# define TUNNEL_KEY_PAD 0
#endif /* TUNNEL_KEY_PAD */
#ifndef TUNNEL_VALUE_PAD
# define TUNNEL_VALUE_PAD 0
#endif /* TUNNEL_VALUE_PAD */

#endif /* RELOADLAB_CONFIG_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_LINUX_BPF_H
#define RELOADLAB_LINUX_BPF_H

#include <linux/types.h>

/*
 * The part of the bpf(2) interface that these programs use. Numbers and layouts
 * are the kernel's (include/uapi/linux/bpf.h); they never change.
 */

#define BPF_MAP_TYPE_HASH		1
#define BPF_MAP_TYPE_ARRAY		2
#define BPF_MAP_TYPE_PROG_ARRAY		3
#define BPF_MAP_TYPE_PERF_EVENT_ARRAY	4
#define BPF_MAP_TYPE_PERCPU_HASH	5
#define BPF_MAP_TYPE_PERCPU_ARRAY	6
#define BPF_MAP_TYPE_LRU_HASH		9
#define BPF_MAP_TYPE_LRU_PERCPU_HASH	10
#define BPF_MAP_TYPE_LPM_TRIE		11

/* map_flags */
#define BPF_F_NO_PREALLOC		(1U << 0)
#define BPF_F_NUMA_NODE			(1U << 2)

/* Flags of bpf_map_update_elem(). */
#define BPF_ANY				0
#define BPF_NOEXIST			1

/* Flags of bpf_skb_store_bytes(). */
#define BPF_F_RECOMPUTE_CSUM		(1ULL << 0)

/* Flags of bpf_perf_event_output(); bits 32 and up say how much of the packet goes with the event. */
#define BPF_F_CURRENT_CPU		0xffffffffULL

/* Flags of bpf_redirect(); without it the packet goes out of the device. */
#define BPF_F_INGRESS			(1ULL << 0)

/* Flags of bpf_skb_set_tunnel_key(). */
#define BPF_F_ZERO_CSUM_TX		(1ULL << 1)

/* Verdicts of a direct-action classifier (include/uapi/linux/pkt_cls.h). */
#define TC_ACT_OK			0
#define TC_ACT_SHOT			2
#define TC_ACT_REDIRECT			7

/* bpf_skb_change_type(): "this packet is for us" (include/uapi/linux/if_packet.h). */
#define PACKET_HOST			0
#define PACKET_OTHERHOST		3

/* The kernel's view of a socket buffer, as far as it is needed here. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;		/* pointers, really */
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk;
	__u32 gso_size;
};

/* What XDP makes of a packet. */
#define XDP_DROP			1
#define XDP_PASS			2

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

/* As long as it was before Linux 6.0, which made room for the local address: all kernels take this length. */
struct bpf_tunnel_key {
	__u32 tunnel_id;
	union {
		__u32 remote_ipv4;	/* host byte order */
		__u32 remote_ipv6[4];
	};
	__u8 tunnel_tos;
	__u8 tunnel_ttl;
	__u16 tunnel_ext;
	__u32 tunnel_label;
};
_Static_assert(sizeof(struct bpf_tunnel_key) == 28, "kernels before 6.0 take no more");

#endif /* RELOADLAB_LINUX_BPF_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_EPS_H
#define RELOADLAB_EPS_H

#include "ip.h"

/* The endpoint stands for the host, not for a pod. */
#define ENDPOINT_F_HOST 1

struct endpoint_key {
	union ipaddr ip;
	__u8 family;
	__u8 key;
	__u8 cluster_id;
	__u8 pad;
};

struct endpoint_info {
	__u32 ifindex;		/* host side of the pod's device */
	__u16 unused;
	__u16 lxc_id;
	__u32 flags;
	__u32 hole;
	__u64 mac;		/* of the pod, in the first six bytes */
	__u64 node_mac;		/* of the host side */
	__u32 pad[4];
};

/* Local pods and the addresses of the host. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint_info);
	__uint(max_entries, ENDPOINTS_MAP_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} ENDPOINTS_MAP __maps_btf;

static __always_inline struct endpoint_info *lookup_endpoint(const union ipaddr *ip, const enum family family)
{
	struct endpoint_key key = { .ip = *ip, .family = (__u8)family };

	return map_lookup_elem(&ENDPOINTS_MAP, &key);
}

#endif /* RELOADLAB_EPS_H */

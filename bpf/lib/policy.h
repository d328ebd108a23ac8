/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_POLICY_H
#define RELOADLAB_POLICY_H

#include "common.h"

struct policy_key {
	__u32 prefixlen;
	__u32 sec_label;
	__u8 egress : 1,
	     pad : 7;
	__u8 protocol;
	__be16 dport;
#if POLICY_KEY_PAD
	__u32 variation[POLICY_KEY_PAD];
#endif /* POLICY_KEY_PAD */
};

/* Bits of a policy_key behind prefixlen; a lookup asks for all of them. */
#define POLICY_FULL_PREFIX 64

struct policy_entry {
	__be16 proxy_port;
	__u8 deny : 1,
	     wildcard_protocol : 1,
	     wildcard_dport : 1,
	     pad : 5;
	__u8 auth_type;
	__u16 pad1;
	__u16 pad2;
	__u64 packets;
	__u64 bytes;
#if POLICY_VALUE_PAD
	__u64 variation[POLICY_VALUE_PAD];
#endif /* POLICY_VALUE_PAD */
};

/* The rules of one endpoint. */
struct {
	__uint(type, POLICY_MAP_TYPE);
	__type(key, struct policy_key);
	__type(value, struct policy_entry);
	__uint(max_entries, POLICY_MAP_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, POLICY_MAP_FLAGS);
} POLICY_MAP __maps_btf;

/*
 * May `src_label` talk to this pod? For now it always may (0); the rule for the
 * identity, or else the one for all, counts its packets: one sees the map being used.
 */
static __always_inline int policy_can_ingress(const struct __ctx_buff *ctx, __u32 src_label)
{
	struct policy_key key = { .prefixlen = POLICY_FULL_PREFIX, .sec_label = src_label };
	struct policy_entry *entry = map_lookup_elem(&POLICY_MAP, &key);

	if (!entry) {
		key.sec_label = 0;
		entry = map_lookup_elem(&POLICY_MAP, &key);
	}
	if (entry) {
		__sync_fetch_and_add(&entry->packets, 1);
		__sync_fetch_and_add(&entry->bytes, ctx->len);
	}
	return 0;
}

#endif /* RELOADLAB_POLICY_H */

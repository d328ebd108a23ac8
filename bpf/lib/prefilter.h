/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_PREFILTER_H
#define RELOADLAB_PREFILTER_H

#include "common.h"

/* A prefix; the layouts of all four maps are Cilium's. */
struct lpm_v4_key {
	__u32 prefixlen;
	__u8 addr[4];
};

struct lpm_v6_key {
	__u32 prefixlen;
	__u8 addr[16];
};

struct lpm_val {
	__u8 flags;		/* none yet: what is there is denied */
};

#define CIDR_MAP(name, map_type, key_type, size) \
	struct { \
		__uint(type, map_type); \
		__type(key, struct key_type); \
		__type(value, struct lpm_val); \
		__uint(max_entries, size); \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
	} name __maps_btf

CIDR_MAP(CIDR4_HMAP_NAME, BPF_MAP_TYPE_HASH, lpm_v4_key, CIDR4_HMAP_ELEMS);
CIDR_MAP(CIDR4_LMAP_NAME, BPF_MAP_TYPE_LPM_TRIE, lpm_v4_key, CIDR4_LMAP_ELEMS);
CIDR_MAP(CIDR6_HMAP_NAME, BPF_MAP_TYPE_HASH, lpm_v6_key, CIDR4_HMAP_ELEMS);
CIDR_MAP(CIDR6_LMAP_NAME, BPF_MAP_TYPE_LPM_TRIE, lpm_v6_key, CIDR4_LMAP_ELEMS);

/* Whether the prefilter denies a source address, which is that of a header in the packet. */
static __always_inline bool prefilter_denies(const void *saddr, const enum family family)
{
	struct lpm_v4_key key4 = { .prefixlen = 32 };
	struct lpm_v6_key key6 = { .prefixlen = 128 };

	if (family == FAMILY_IPV4) {
		memcpy(key4.addr, saddr, sizeof(key4.addr));
		return map_lookup_elem(&CIDR4_LMAP_NAME, &key4) || map_lookup_elem(&CIDR4_HMAP_NAME, &key4);
	}
	memcpy(key6.addr, saddr, sizeof(key6.addr));
	return map_lookup_elem(&CIDR6_LMAP_NAME, &key6) || map_lookup_elem(&CIDR6_HMAP_NAME, &key6);
}

#endif /* RELOADLAB_PREFILTER_H */

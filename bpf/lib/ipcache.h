/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_IPCACHE_H
#define RELOADLAB_IPCACHE_H

#include "ip.h"

struct ipcache_key {
	__u32 prefixlen;
	__u16 pad1;
	__u8 cluster_id;
	__u8 family;
	union ipaddr ip;
#if IPCACHE_KEY_PAD
	__u32 variation[IPCACHE_KEY_PAD];
#endif /* IPCACHE_KEY_PAD */
};

struct remote_endpoint_info {
	__u32 sec_identity;
	__be32 tunnel_endpoint;	/* the node it lives on, 0 if it needs no tunnel */
	__u16 node_id;
	__u8 key;
	__u8 pad;
#if IPCACHE_VALUE_PAD
	__u32 variation[IPCACHE_VALUE_PAD];
#endif /* IPCACHE_VALUE_PAD */
};

/* Who has an address: identity and node, for pods everywhere and for address ranges. */
struct {
	__uint(type, IPCACHE_MAP_TYPE);
	__type(key, struct ipcache_key);
	__type(value, struct remote_endpoint_info);
	__uint(max_entries, IPCACHE_MAP_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, IPCACHE_MAP_FLAGS);
} IPCACHE_MAP __maps_btf;

/* Bits of the key between prefixlen and the address; every entry matches them in full. */
#define IPCACHE_STATIC_PREFIX 32

static __always_inline struct remote_endpoint_info *lookup_ipcache(const union ipaddr *ip, const enum family family)
{
	struct ipcache_key key = {
		.prefixlen = IPCACHE_STATIC_PREFIX + (family == FAMILY_IPV4 ? 32 : 128),
		.family = (__u8)family,
		.ip = *ip,
	};

	return map_lookup_elem(&IPCACHE_MAP, &key);
}

/* Whoever is not known is outside. */
static __always_inline __u32 lookup_identity(const union ipaddr *ip, const enum family family)
{
	struct remote_endpoint_info *info = lookup_ipcache(ip, family);

	return info && info->sec_identity ? info->sec_identity : WORLD_ID;
}

/*
 * Correct an identity that says no more than "from outside" by the source address. An
 * address of the host proves nothing here: masquerading gives it to forwarded packets.
 */
static __always_inline __u32 resolve_source(__u32 identity, const struct packet *pkt, const enum family family)
{
	struct remote_endpoint_info *info;

	if (identity != WORLD_ID)
		return identity;
	info = lookup_ipcache(&pkt->saddr, family);
	if (!info || !info->sec_identity || info->sec_identity == HOST_ID)
		return identity;
	return info->sec_identity;
}

#endif /* RELOADLAB_IPCACHE_H */

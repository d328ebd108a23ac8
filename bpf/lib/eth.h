/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_ETH_H
#define RELOADLAB_ETH_H

#include "common.h"
#include "drop.h"

/*
 * The EtherType, in network order, or 0 if this is no Ethernet II frame: too short, or
 * with a length where the type should be. The kernel's own ctx->protocol would do for
 * most packets, but it says ETH_P_802_2 for the others, hiding the difference.
 */
static __always_inline __be16 eth_protocol(const struct __ctx_buff *ctx)
{
	const void *data = (const void *)(unsigned long)ctx->data;
	const void *data_end = (const void *)(unsigned long)ctx->data_end;
	const struct ethhdr *eth = data;

	if (data + sizeof(*eth) > data_end || bpf_ntohs(eth->h_proto) < ETH_P_802_3_MIN)
		return 0;
	return eth->h_proto;
}

/* Without branches: a compiler may turn a chain of comparisons into a call of bcmp(). */
static __always_inline bool eth_equal(const __u8 *a, const __u8 *b)
{
	__u32 difference = 0;
	int i;

#pragma unroll
	for (i = 0; i < ETH_ALEN; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

/* Both addresses at once; they stand side by side in the header. */
static __always_inline int eth_store(struct __ctx_buff *ctx, const __u8 *dest, const __u8 *source)
{
	__u8 addrs[2 * ETH_ALEN];

	memcpy(addrs, dest, ETH_ALEN);
	memcpy(addrs + ETH_ALEN, source, ETH_ALEN);
	return skb_store_bytes(ctx, 0, addrs, sizeof(addrs), 0) ? DROP_WRITE_ERROR : 0;
}

static __always_inline int eth_store_dest(struct __ctx_buff *ctx, const __u8 *dest)
{
	return skb_store_bytes(ctx, 0, dest, ETH_ALEN, 0) ? DROP_WRITE_ERROR : 0;
}

#endif /* RELOADLAB_ETH_H */

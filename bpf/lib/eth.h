/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_ETH_H
#define RELOADLAB_ETH_H

#include "common.h"
#include "drop.h"
#include "ethertype.h"

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

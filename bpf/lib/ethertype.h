/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_ETHERTYPE_H
#define RELOADLAB_ETHERTYPE_H

#include "common.h"

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

#endif /* RELOADLAB_ETHERTYPE_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_ARP_H
#define RELOADLAB_ARP_H

#include <linux/if_arp.h>
#include "eth.h"

struct arp_frame {
	struct ethhdr eth;
	struct arphdr arp;
	struct arp_ipv4 addrs;
} __packed;

/* Load the frame if it is a request that `mac` has to answer: broadcast, or sent to it. */
static __always_inline bool arp_load_request(const struct __ctx_buff *ctx, struct arp_frame *frame,
					     const union macaddr *mac)
{
	const __u8 *dest = frame->eth.h_dest;

	if (skb_load_bytes(ctx, 0, frame, sizeof(*frame)))
		return false;
	if (frame->arp.ar_hrd != bpf_htons(ARPHRD_ETHER) || frame->arp.ar_pro != bpf_htons(ETH_P_IP) ||
	    frame->arp.ar_hln != ETH_ALEN || frame->arp.ar_pln != sizeof(__be32) ||
	    frame->arp.ar_op != bpf_htons(ARPOP_REQUEST))
		return false;
	if ((dest[0] & dest[1] & dest[2] & dest[3] & dest[4] & dest[5]) == 0xff)
		return true;
	return eth_equal(dest, mac->addr);
}

/* Turn the request round: `mac` has the address that was asked for. */
static __always_inline int arp_reply(struct __ctx_buff *ctx, struct arp_frame *frame, const union macaddr *mac)
{
	__be32 asked = frame->addrs.tip;

	memcpy(frame->eth.h_dest, frame->eth.h_source, ETH_ALEN);
	memcpy(frame->eth.h_source, mac->addr, ETH_ALEN);
	frame->arp.ar_op = bpf_htons(ARPOP_REPLY);
	memcpy(frame->addrs.tha, frame->addrs.sha, ETH_ALEN);
	frame->addrs.tip = frame->addrs.sip;
	memcpy(frame->addrs.sha, mac->addr, ETH_ALEN);
	frame->addrs.sip = asked;
	return skb_store_bytes(ctx, 0, frame, sizeof(*frame), BPF_F_RECOMPUTE_CSUM) ? DROP_WRITE_ERROR : 0;
}

#endif /* RELOADLAB_ARP_H */

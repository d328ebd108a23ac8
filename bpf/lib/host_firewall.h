/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_HOST_FIREWALL_H
#define RELOADLAB_HOST_FIREWALL_H

#include "enforce.h"
#include "ipcache.h"
#include "mark.h"

/*
 * The policy of the host: for packets to and from its own addresses, as ipcache knows
 * them. What is forwarded is none of its business. Both return 0 or why the packet is
 * dropped; `parsed` is what ip_parse() said, which matters only to packets concerned.
 */
static __always_inline int host_policy_ingress(struct __ctx_buff *ctx, struct packet *pkt, int parsed,
					       struct trace *trace, const enum family family)
{
	int ret = parsed;

	if (lookup_identity(&pkt->daddr, family) != HOST_ID)
		return 0;
	trace->src_label = lookup_identity(&pkt->saddr, family);
	trace->dst_label = HOST_ID;
	trace->dst_id = HOST_EP_ID;
	if (!ret)
		ret = ct_lookup(ctx, pkt, CT_INGRESS, family);
	if (ret)
		return ret;
	trace->reason = pkt->ct;
	ret = enforce(ctx, pkt, trace, false, CT_INGRESS, family);
	trace->monitor = pkt->monitor;
	/* It may have come from a pod's device, addressed to that. */
	if (!ret)
		skb_change_type(ctx, PACKET_HOST);
	return ret;
}

/*
 * `by_host`: the host has sent the packet, and not only given it its address. Of one that
 * it forwards, masqueraded, the connection is remembered, so that answers pass.
 */
static __always_inline int host_policy_egress(struct __ctx_buff *ctx, struct packet *pkt, int parsed,
					      struct trace *trace, bool by_host, const enum family family)
{
	int ret = parsed;

	if (lookup_identity(&pkt->saddr, family) != HOST_ID)
		return 0;
	if (!ret)
		ret = ct_lookup(ctx, pkt, CT_EGRESS, family);
	if (ret)
		return ret;
	trace->reason = pkt->ct;
	if (icmp6_is_of_link(pkt, family))
		return 0;
	if (by_host) {
		trace->src_label = HOST_ID;
		trace->dst_label = lookup_identity(&pkt->daddr, family);
		ret = enforce(ctx, pkt, trace, false, CT_EGRESS, family);
	} else if (pkt->ct == CT_NEW || pkt->ct == CT_REOPENED) {
		ret = ct_create(ctx, pkt, trace->src_label, false, CT_EGRESS, family);
	}
	trace->monitor = pkt->monitor;
	return ret;
}

/* Into the host's own stack. */
static __always_inline int host_ingress(struct __ctx_buff *ctx, struct trace *trace, const enum family family)
{
	struct packet pkt = {};
	int parsed = ip_parse(ctx, &pkt, family);
	int ret = host_policy_ingress(ctx, &pkt, parsed, trace, family);

	return ret ? ret : pass_packet(ctx, trace, TRACE_TO_STACK);
}

/* Out of it: 0, or why the packet is dropped. */
static __always_inline int host_egress(struct __ctx_buff *ctx, struct trace *trace, bool by_host,
				       const enum family family)
{
	struct packet pkt = {};
	int parsed = ip_parse(ctx, &pkt, family);

	return host_policy_egress(ctx, &pkt, parsed, trace, by_host, family);
}

#endif /* RELOADLAB_HOST_FIREWALL_H */

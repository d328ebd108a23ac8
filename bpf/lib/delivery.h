/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_DELIVERY_H
#define RELOADLAB_DELIVERY_H

#include "eps.h"
#include "eth.h"
#include "mark.h"
#include "tailcall.h"
#include "trace.h"

/* Who hands a packet over for local delivery. */
struct delivery {
	__u32 src_label;
	enum metric_dir dir;	/* the direction in which it is counted */
	bool from_host;
	bool from_tunnel;
};

/* Out of the host side of a pod's device, into the pod. */
static __always_inline int redirect_to_lxc(struct __ctx_buff *ctx, const struct trace *trace, __u32 ifindex)
{
	trace_packet(ctx, trace, TRACE_TO_LXC);
	return redirect((int)ifindex, 0);
}

/*
 * Deliver to a pod of this node: one hop, the pod's MAC, and then
 * - endpoint routes off: the destination's policy program, by its id. A miss returns.
 * - endpoint routes on: the device itself, whose egress program enforces the policy.
 */
static __always_inline int deliver_local(struct __ctx_buff *ctx, const struct packet *pkt,
					 const struct endpoint_info *ep, const struct delivery from,
					 const enum family family)
{
	int ret = ip_decrement_ttl(ctx, pkt, family);

	if (!ret)
		ret = eth_store(ctx, (const __u8 *)&ep->mac, (const __u8 *)&ep->node_mac);
	if (ret)
		return ret;
#ifdef LOCAL_DELIVERY_METRICS
	update_metrics(ctx, REASON_FORWARDED, from.dir);
#endif /* LOCAL_DELIVERY_METRICS */
#ifdef USE_BPF_PROG_FOR_INGRESS_POLICY
	mark_set_identity(ctx, from.src_label);
	return redirect((int)ep->ifindex, 0);
#else
	cb_store(ctx, CB_SRC_LABEL, from.src_label);
	cb_store(ctx, CB_IFINDEX, ep->ifindex);
	cb_store(ctx, CB_FROM_HOST, from.from_host);
	cb_store(ctx, CB_FROM_TUNNEL, from.from_tunnel);
	policy_tail_call(ctx, ep->lxc_id);
	return DROP_MISSED_TAIL_CALL;
#endif /* USE_BPF_PROG_FOR_INGRESS_POLICY */
}

#endif /* RELOADLAB_DELIVERY_H */

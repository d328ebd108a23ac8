/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_TRACE_H
#define RELOADLAB_TRACE_H

#include "metrics.h"

/* Where a packet is seen: coming in at an entry program, or leaving a chain of programs. */
enum trace_point {
	TRACE_TO_LXC,
	TRACE_TO_PROXY,
	TRACE_TO_HOST,
	TRACE_TO_STACK,
	TRACE_TO_OVERLAY,
	TRACE_FROM_LXC,
	TRACE_FROM_PROXY,
	TRACE_FROM_HOST,
	TRACE_FROM_STACK,
	TRACE_FROM_OVERLAY,
	TRACE_FROM_NETWORK,
	TRACE_TO_NETWORK,
};

/* Count the packet. A trace notification to EVENTS_MAP belongs here too, with its identities. */
static __always_inline void trace_packet(const struct __ctx_buff *ctx, enum trace_point point)
{
	switch (point) {
	case TRACE_TO_LXC:
		update_metrics(ctx, REASON_FORWARDED, METRIC_INGRESS);
		break;
	case TRACE_TO_HOST:
	case TRACE_TO_STACK:
	case TRACE_TO_OVERLAY:
	case TRACE_TO_NETWORK:
		update_metrics(ctx, REASON_FORWARDED, METRIC_EGRESS);
		break;
	case TRACE_FROM_HOST:
	case TRACE_FROM_STACK:
	case TRACE_FROM_OVERLAY:
	case TRACE_FROM_NETWORK:
		update_metrics(ctx, REASON_PLAINTEXT, METRIC_INGRESS);
		break;
	case TRACE_FROM_LXC:	/* counted when it leaves */
	case TRACE_FROM_PROXY:
	case TRACE_TO_PROXY:
		break;
	}
}

/* The exit of a chain that hands the packet to the kernel. */
static __always_inline int pass_packet(const struct __ctx_buff *ctx, enum trace_point point)
{
	trace_packet(ctx, point);
	return TC_ACT_OK;
}

#endif /* RELOADLAB_TRACE_H */

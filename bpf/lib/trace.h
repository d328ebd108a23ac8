/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_TRACE_H
#define RELOADLAB_TRACE_H

#include "events.h"
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

static __always_inline void count_trace(const struct __ctx_buff *ctx, const enum trace_point point)
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

#ifdef TRACE_NOTIFY
/*
 * How many events MONITOR_AGGREGATION leaves: from 1 on none for packets that come in,
 * from 3 on only those that connection tracking finds worth one.
 */
static __always_inline bool trace_wanted(const struct trace *trace, const enum trace_point point)
{
	switch (point) {
	case TRACE_FROM_LXC:
	case TRACE_FROM_PROXY:
	case TRACE_FROM_HOST:
	case TRACE_FROM_STACK:
	case TRACE_FROM_OVERLAY:
	case TRACE_FROM_NETWORK:
		return MONITOR_AGGREGATION < 1;
	default:
		return MONITOR_AGGREGATION < 3 || trace->monitor;
	}
}

static __always_inline void notify_trace(struct __ctx_buff *ctx, const struct trace *trace,
					 const enum trace_point point)
{
	struct trace_notify message = {
		.src_label = trace->src_label,
		.dst_label = trace->dst_label,
		.dst_id = trace->dst_id,
		.reason = trace->reason,
		.ifindex = ctx->ifindex,
	};

	if (!trace_wanted(trace, point))
		return;
	notify_fill(ctx, &message.header, NOTIFY_TRACE, (__u8)point);
	notify_send(ctx, &message.header, sizeof(message));
}
#else
static __always_inline void notify_trace(struct __ctx_buff *ctx __maybe_unused,
					 const struct trace *trace __maybe_unused,
					 const enum trace_point point __maybe_unused)
{
}
#endif /* TRACE_NOTIFY */

/* Count the packet and tell who listens. */
static __always_inline void trace_packet(struct __ctx_buff *ctx, const struct trace *trace,
					 const enum trace_point point)
{
	count_trace(ctx, point);
	notify_trace(ctx, trace, point);
}

/* The exit of a chain that hands the packet to the kernel. */
static __always_inline int pass_packet(struct __ctx_buff *ctx, const struct trace *trace,
				       const enum trace_point point)
{
	trace_packet(ctx, trace, point);
	return TC_ACT_OK;
}

/* The same two for programs that know no more of the packet than who sent it. */
static __always_inline void trace_from(struct __ctx_buff *ctx, __u32 src_label, const enum trace_point point)
{
	const struct trace trace = TRACE_UNTRACKED(src_label);

	trace_packet(ctx, &trace, point);
}

static __always_inline int pass_from(struct __ctx_buff *ctx, __u32 src_label, const enum trace_point point)
{
	trace_from(ctx, src_label, point);
	return TC_ACT_OK;
}

#endif /* RELOADLAB_TRACE_H */

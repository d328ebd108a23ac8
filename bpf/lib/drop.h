/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_DROP_H
#define RELOADLAB_DROP_H

#include "events.h"
#include "metrics.h"

/*
 * Why a packet is dropped. Functions return these, negative, in place of a verdict;
 * cilium_metrics counts them positive, as a reason above 127.
 */
#define DROP_INVALID_SIP	(-132)	/* the source address is not the pod's */
#define DROP_POLICY		(-133)	/* no rule allows it */
#define DROP_INVALID		(-134)	/* a header that is cut off or contradicts itself */
#define DROP_CT_INVALID_HDR	(-135)	/* the upper layer's header is cut off */
#define DROP_CT_UNKNOWN_PROTO	(-137)	/* an upper layer that connection tracking does not know */
#define DROP_UNKNOWN_L3		(-139)	/* an EtherType that is not handled */
#define DROP_MISSED_TAIL_CALL	(-140)	/* the slot was empty */
#define DROP_WRITE_ERROR	(-141)	/* the packet could not be rewritten */
#define DROP_NO_TUNNEL_KEY	(-147)
#define DROP_UNROUTABLE		(-151)	/* sent to cilium_host, yet nobody knows the destination */
#define DROP_CSUM_L3		(-153)
#define DROP_CT_CREATE_FAILED	(-155)	/* the map of connections is full */
#define DROP_INVALID_EXTHDR	(-156)	/* IPv6 extension headers that cannot be followed */
#define DROP_FRAG_NOSUPPORT	(-157)
#define DROP_NO_TUNNEL_ENDPOINT	(-160)	/* not a drop: go to the stack instead */
#define DROP_UNSUPPORTED_L2	(-166)	/* no Ethernet II header */
#define DROP_INVALID_IDENTITY	(-171)	/* an identity that cannot come through the tunnel */
#define DROP_FRAG_NOT_FOUND	(-175)	/* a later fragment, and the first one has not been seen */
#define DROP_POLICY_DENY	(-181)	/* a rule denies it */
#define DROP_INVALID_TC_BUFFER	(-184)	/* the program before left nothing in the tail call buffer */

#ifdef DROP_NOTIFY
static __always_inline void notify_drop(struct __ctx_buff *ctx, const struct trace *trace, __u8 reason)
{
	struct drop_notify message = {
		.src_label = trace->src_label,
		.dst_label = trace->dst_label,
		.dst_id = trace->dst_id,
		.file = FILE_ID,
		.ifindex = ctx->ifindex,
	};

	notify_fill(ctx, &message.header, NOTIFY_DROP, reason);
	notify_send(ctx, &message.header, sizeof(message));
}
#else
static __always_inline void notify_drop(struct __ctx_buff *ctx __maybe_unused,
					const struct trace *trace __maybe_unused, __u8 reason __maybe_unused)
{
}
#endif /* DROP_NOTIFY */

/*
 * The one drop exit of a program: counts, notifies, returns `verdict`. In this order,
 * so that the counters never depend on an event.
 */
static __always_inline int drop_packet_verdict(struct __ctx_buff *ctx, const struct trace *trace, int error,
					       enum metric_dir dir, int verdict)
{
	__u8 reason = (__u8)-error;

	update_metrics(ctx, reason, dir);
	notify_drop(ctx, trace, reason);
	return verdict;
}

static __always_inline int drop_packet(struct __ctx_buff *ctx, const struct trace *trace, int error,
				       enum metric_dir dir)
{
	return drop_packet_verdict(ctx, trace, error, dir, TC_ACT_SHOT);
}

/* For programs that know no more of the packet than who sent it. */
static __always_inline int drop_from(struct __ctx_buff *ctx, __u32 src_label, int error, enum metric_dir dir)
{
	const struct trace trace = TRACE_UNTRACKED(src_label);

	return drop_packet(ctx, &trace, error, dir);
}

#endif /* RELOADLAB_DROP_H */

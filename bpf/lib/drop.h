/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_DROP_H
#define RELOADLAB_DROP_H

#include "events.h"
#include "metrics.h"
#include "source_file.h"

/*
 * Why a packet is dropped, and where that was decided. Functions return these, negative,
 * in place of a verdict: the reason, which cilium_metrics counts, in bits 0-7 (above 127),
 * the line in 8-23, the file in 24-30. So no two of them are equal.
 */
#define DROP_HERE(reason)	(-((reason) | __LINE__ << 8 | SOURCE_FILE << 24))

#define DROP_INVALID_SIP	DROP_HERE(132)	/* the source address is not the pod's */
#define DROP_POLICY		DROP_HERE(133)	/* no rule allows it */
#define DROP_INVALID		DROP_HERE(134)	/* a header that is cut off or contradicts itself */
#define DROP_CT_INVALID_HDR	DROP_HERE(135)	/* the upper layer's header is cut off */
#define DROP_CT_UNKNOWN_PROTO	DROP_HERE(137)	/* an upper layer that connection tracking does not know */
#define DROP_UNKNOWN_L3		DROP_HERE(139)	/* an EtherType that is not handled */
#define DROP_MISSED_TAIL_CALL	DROP_HERE(140)	/* the slot was empty */
#define DROP_WRITE_ERROR	DROP_HERE(141)	/* the packet could not be rewritten */
#define DROP_NO_TUNNEL_KEY	DROP_HERE(147)
#define DROP_UNROUTABLE		DROP_HERE(151)	/* sent to cilium_host, yet nobody knows the destination */
#define DROP_CSUM_L3		DROP_HERE(153)
#define DROP_CT_CREATE_FAILED	DROP_HERE(155)	/* the map of connections is full */
#define DROP_INVALID_EXTHDR	DROP_HERE(156)	/* IPv6 extension headers that cannot be followed */
#define DROP_FRAG_NOSUPPORT	DROP_HERE(157)
#define DROP_NO_TUNNEL_ENDPOINT	(-160)	/* not a drop: go to the stack instead */
#define DROP_UNSUPPORTED_L2	DROP_HERE(166)	/* no Ethernet II header */
#define DROP_INVALID_IDENTITY	DROP_HERE(171)	/* an identity that cannot come through the tunnel */
#define DROP_FRAG_NOT_FOUND	DROP_HERE(175)	/* a later fragment, and the first one has not been seen */
#define DROP_POLICY_DENY	DROP_HERE(181)	/* a rule denies it, or the prefilter */
#define DROP_VLAN_FILTERED	DROP_HERE(182)	/* tagged with a VLAN that VLAN_FILTER does not let pass */
#define DROP_INVALID_TC_BUFFER	DROP_HERE(184)	/* the program before left nothing in the tail call buffer */

static __always_inline __u8 drop_reason(int error)
{
	return (__u8)-error;
}

#ifdef DROP_NOTIFY
static __always_inline void notify_drop(struct __ctx_buff *ctx, const struct trace *trace, int error)
{
	const __u32 why = (__u32)-error;
	struct drop_notify message = {
		.src_label = trace->src_label,
		.dst_label = trace->dst_label,
		.dst_id = trace->dst_id,
		.line = (__u16)(why >> 8),
		.file = (__u8)(why >> 24),
		.ifindex = ctx_get_ifindex(ctx),
	};

	notify_fill(ctx, &message.header, NOTIFY_DROP, drop_reason(error));
	notify_send(ctx, &message.header, sizeof(message));
}
#else
static __always_inline void notify_drop(struct __ctx_buff *ctx __maybe_unused,
					const struct trace *trace __maybe_unused, int error __maybe_unused)
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
	update_metrics(ctx, drop_reason(error), dir);
	notify_drop(ctx, trace, error);
	return verdict;
}

static __always_inline int drop_packet(struct __ctx_buff *ctx, const struct trace *trace, int error,
				       enum metric_dir dir)
{
	return drop_packet_verdict(ctx, trace, error, dir, CTX_ACT_DROP);
}

/* For programs that know no more of the packet than who sent it. */
static __always_inline int drop_from(struct __ctx_buff *ctx, __u32 src_label, int error, enum metric_dir dir)
{
	const struct trace trace = TRACE_UNTRACKED(src_label);

	return drop_packet(ctx, &trace, error, dir);
}

#endif /* RELOADLAB_DROP_H */

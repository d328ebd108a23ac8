/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_DROP_H
#define RELOADLAB_DROP_H

#include "metrics.h"

/*
 * Why a packet is dropped. Functions return these, negative, in place of a verdict;
 * cilium_metrics counts them positive, as a reason above 127.
 */
#define DROP_INVALID_SIP	(-132)	/* the source address is not the pod's */
#define DROP_POLICY		(-133)
#define DROP_INVALID		(-134)	/* a header that is cut off or contradicts itself */
#define DROP_UNKNOWN_L3		(-139)	/* an EtherType that is not handled */
#define DROP_MISSED_TAIL_CALL	(-140)	/* the slot was empty */
#define DROP_WRITE_ERROR	(-141)	/* the packet could not be rewritten */
#define DROP_NO_TUNNEL_KEY	(-147)
#define DROP_UNROUTABLE		(-151)	/* sent to cilium_host, yet nobody knows the destination */
#define DROP_CSUM_L3		(-153)
#define DROP_INVALID_EXTHDR	(-156)	/* IPv6 extension headers that cannot be followed */
#define DROP_FRAG_NOSUPPORT	(-157)
#define DROP_NO_TUNNEL_ENDPOINT	(-160)	/* not a drop: go to the stack instead */
#define DROP_UNSUPPORTED_L2	(-166)	/* no Ethernet II header */
#define DROP_INVALID_IDENTITY	(-171)	/* an identity that cannot come through the tunnel */

/* Where the notification to EVENTS_MAP goes: after the metrics, so that they never depend on it. */
static __always_inline void notify_drop(struct __ctx_buff *ctx __maybe_unused, __u32 src_label __maybe_unused,
					__u8 reason __maybe_unused, enum metric_dir dir __maybe_unused)
{
}

/* The one drop exit of a program: counts, notifies, returns `verdict`. */
static __always_inline int drop_packet_verdict(struct __ctx_buff *ctx, __u32 src_label, int error,
					       enum metric_dir dir, int verdict)
{
	__u8 reason = (__u8)-error;

	update_metrics(ctx, reason, dir);
	notify_drop(ctx, src_label, reason, dir);
	return verdict;
}

static __always_inline int drop_packet(struct __ctx_buff *ctx, __u32 src_label, int error, enum metric_dir dir)
{
	return drop_packet_verdict(ctx, src_label, error, dir, TC_ACT_SHOT);
}

#endif /* RELOADLAB_DROP_H */

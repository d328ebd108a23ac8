/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_EVENTS_H
#define RELOADLAB_EVENTS_H

#include "common.h"

/* Types of messages; the numbers stand in lab/abi/notifications.py too. */
enum notify_type {
	NOTIFY_DROP = 1,
	NOTIFY_TRACE = 4,
	NOTIFY_POLICY_VERDICT = 5,
};

#define NOTIFY_CAPTURE_VERSION 1

/* What every message begins with; the first len_cap bytes of the packet follow the message. */
struct notify_header {
	__u8 type;
	__u8 subtype;		/* the reason of a drop, the point of a trace */
	__u16 source;		/* the endpoint whose program it was */
	__u32 hash;
	__u32 len_orig;
	__u16 len_cap;
	__u16 version;
};

struct drop_notify {
	struct notify_header header;
	__u32 src_label;
	__u32 dst_label;
	__u32 dst_id;
	__u16 line;		/* where in the source the drop was decided */
	__u8 file;		/* SOURCE_FILE */
	__s8 ext_error;
	__u32 ifindex;
};

struct trace_notify {
	struct notify_header header;
	__u32 src_label;
	__u32 dst_label;
	__u16 dst_id;
	__u8 reason;		/* enum ct_status */
	__u8 ipv6;
	__u32 ifindex;
	union ipaddr orig_ip;	/* nothing rewrites addresses here: zero */
};

struct policy_verdict_notify {
	struct notify_header header;
	__u32 remote_label;
	__s32 verdict;		/* 0, or the drop's (negative) reason */
	__u16 dst_port;		/* host byte order */
	__u8 proto;
	__u8 dir : 2,		/* 1 ingress, 2 egress */
	     ipv6 : 1,
	     match_type : 3,	/* enum policy_match */
	     audited : 1,
	     pad0 : 1;
	__u32 pad1;
};

/* Who a packet is from and to, as far as known, and what a trace says of it besides. */
struct trace {
	__u32 src_label;
	__u32 dst_label;
	__u16 dst_id;		/* the endpoint on this node */
	__u8 reason;
	__u32 monitor;		/* 0: connection tracking wants no trace of this packet */
};

/* Of a packet that no connection tracking has seen. */
#define TRACE_UNTRACKED(label) { .src_label = (label), .reason = CT_UNTRACKED, .monitor = TRACE_PAYLOAD_LEN }

/* One ring for each CPU, opened by whoever listens; without a listener an event costs a lookup. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, __NR_CPUS__);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} EVENTS_MAP __maps_btf;

static __always_inline void notify_fill(struct __ctx_buff *ctx, struct notify_header *header,
					const enum notify_type type, __u8 subtype)
{
	header->type = (__u8)type;
	header->subtype = subtype;
	header->source = EVENT_SOURCE;
	header->hash = ctx_get_hash(ctx);
	header->len_orig = ctx_full_len(ctx);
	header->len_cap = (__u16)(header->len_orig < TRACE_PAYLOAD_LEN ? header->len_orig : TRACE_PAYLOAD_LEN);
	header->version = NOTIFY_CAPTURE_VERSION;
}

/* `message` begins with its header. A listener that is too slow loses events; the packet goes on. */
static __always_inline void notify_send(struct __ctx_buff *ctx, const struct notify_header *message, __u64 size)
{
	perf_event_output(ctx, &EVENTS_MAP, (__u64)message->len_cap << 32 | BPF_F_CURRENT_CPU, message, size);
}

#endif /* RELOADLAB_EVENTS_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_POLICY_H
#define RELOADLAB_POLICY_H

#include "drop.h"

struct policy_key {
	__u32 prefixlen;
	__u32 sec_label;
	__u8 egress : 1,
	     pad : 7;
	__u8 protocol;
	__be16 dport;
#if POLICY_KEY_PAD
	__u32 variation[POLICY_KEY_PAD];
#endif /* POLICY_KEY_PAD */
};

/* Bits of a policy_key behind prefixlen: whole, without the port, without port and protocol. */
#define POLICY_FULL_PREFIX	64
#define POLICY_PROTO_PREFIX	48
#define POLICY_L3_PREFIX	40

struct policy_entry {
	__be16 proxy_port;
	__u8 deny : 1,
	     wildcard_protocol : 1,	/* the key has no protocol, */
	     wildcard_dport : 1,	/* no port */
	     pad : 5;
	__u8 auth_type;
	__u16 pad1;
	__u16 pad2;
	__u64 packets;
	__u64 bytes;
#if POLICY_VALUE_PAD
	__u64 variation[POLICY_VALUE_PAD];
#endif /* POLICY_VALUE_PAD */
};

/* The rules of one endpoint. */
struct {
	__uint(type, POLICY_MAP_TYPE);
	__type(key, struct policy_key);
	__type(value, struct policy_entry);
	__uint(max_entries, POLICY_MAP_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, POLICY_MAP_FLAGS);
} POLICY_MAP __maps_btf;

/* How a rule was found: what its key names. The numbers are those of policy verdict events. */
enum policy_match {
	POLICY_MATCH_NONE,
	POLICY_MATCH_L3_ONLY,
	POLICY_MATCH_L3_L4,
	POLICY_MATCH_L4_ONLY,
	POLICY_MATCH_ALL,
	POLICY_MATCH_L3_PROTO,
	POLICY_MATCH_PROTO_ONLY,
};

/* How much a rule leaves open: 0 neither protocol nor port, 1 the port, 2 both. */
static __always_inline __u32 policy_width(const struct policy_entry *entry)
{
	return entry->wildcard_protocol ? 2 : entry->wildcard_dport ? 1 : 0;
}

/* The rule for `key`, whose identity is set: the one that leaves least open. */
static __always_inline struct policy_entry *policy_find(struct policy_key *key)
{
#if POLICY_MAP_TYPE == BPF_MAP_TYPE_LPM_TRIE
	return map_lookup_elem(&POLICY_MAP, key);
#else
	struct policy_key wide = *key;
	struct policy_entry *entry = map_lookup_elem(&POLICY_MAP, key);

	if (entry)
		return entry;
	wide.prefixlen = POLICY_PROTO_PREFIX;
	wide.dport = 0;
	entry = map_lookup_elem(&POLICY_MAP, &wide);
	if (entry)
		return entry;
	wide.prefixlen = POLICY_L3_PREFIX;
	wide.protocol = 0;
	return map_lookup_elem(&POLICY_MAP, &wide);
#endif /* POLICY_MAP_TYPE */
}

/*
 * The rule for a packet, of six levels: identity, protocol and port; protocol and port;
 * identity and protocol; protocol; identity; none of them. So the narrower rule decides,
 * and of two equally wide ones that for the identity.
 */
static __always_inline struct policy_entry *policy_lookup(const struct packet *pkt, __u32 remote_label, bool egress,
							  __u8 *match)
{
	struct policy_key key = {
		.prefixlen = POLICY_FULL_PREFIX,
		.sec_label = remote_label,
		.egress = egress,
		.protocol = pkt->protocol,
		.dport = pkt->rule_port,
	};
	struct policy_entry *by_id = policy_find(&key), *any = NULL;
	__u32 width = 3;

	if (by_id) {
		width = policy_width(by_id);
		*match = width == 0 ? POLICY_MATCH_L3_L4 : width == 1 ? POLICY_MATCH_L3_PROTO : POLICY_MATCH_L3_ONLY;
		if (width == 0)
			return by_id;
	}
	key.sec_label = 0;
	any = policy_find(&key);
	if (any && policy_width(any) < width) {
		width = policy_width(any);
		*match = width == 0 ? POLICY_MATCH_L4_ONLY : width == 1 ? POLICY_MATCH_PROTO_ONLY : POLICY_MATCH_ALL;
		return any;
	}
	return by_id;
}

#ifdef POLICY_VERDICT_NOTIFY
static __always_inline void notify_verdict(struct __ctx_buff *ctx, const struct packet *pkt, __u32 remote_label,
					   bool egress, int verdict, __u8 match)
{
	const __u8 dir = egress ? METRIC_EGRESS : METRIC_INGRESS;
	struct policy_verdict_notify message = {
		.remote_label = remote_label,
		.verdict = -(__s32)drop_reason(verdict),
		.dst_port = bpf_ntohs(pkt->rule_port),
		.proto = pkt->protocol,
		.dir = dir,
		.ipv6 = pkt->family == FAMILY_IPV6,
		.match_type = match,
	};

	if (!(POLICY_VERDICT_LOG_FILTER & dir))
		return;
	notify_fill(ctx, &message.header, NOTIFY_POLICY_VERDICT, 0);
	notify_send(ctx, &message.header, sizeof(message));
}
#else
static __always_inline void notify_verdict(struct __ctx_buff *ctx __maybe_unused,
					   const struct packet *pkt __maybe_unused,
					   __u32 remote_label __maybe_unused, bool egress __maybe_unused,
					   int verdict __maybe_unused, __u8 match __maybe_unused)
{
}
#endif /* POLICY_VERDICT_NOTIFY */

/*
 * May `remote_label` talk to this endpoint, or (egress) be talked to? 0, or why not; no
 * rule means no. Reported once a connection, and whenever something is refused.
 */
static __always_inline int policy_check(struct __ctx_buff *ctx, const struct packet *pkt, __u32 remote_label,
					bool egress)
{
	__u8 match = POLICY_MATCH_NONE;
	struct policy_entry *entry = policy_lookup(pkt, remote_label, egress, &match);
	int verdict = DROP_POLICY;

	if (entry) {
		__sync_fetch_and_add(&entry->packets, 1);
		__sync_fetch_and_add(&entry->bytes, ctx->len);
		verdict = entry->deny ? DROP_POLICY_DENY : 0;
	}
	if (verdict || pkt->ct != CT_ESTABLISHED)
		notify_verdict(ctx, pkt, remote_label, egress, verdict, match);
	return verdict;
}

#endif /* RELOADLAB_POLICY_H */

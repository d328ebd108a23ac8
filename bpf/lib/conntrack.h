/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_CONNTRACK_H
#define RELOADLAB_CONNTRACK_H

#include "l4.h"

/*
 * Connections. An entry is made by the first packet, under a tuple that has its ports
 * as they are but its addresses exchanged, and belongs to one side: that of the pod
 * that sent it (egress), or of the pod that received it (ingress). A connection of two
 * pods of a node has two entries.
 */
enum ct_dir {
	CT_EGRESS,
	CT_INGRESS,
};

#define TUPLE_F_OUT	0	/* made by a packet of direction CT_EGRESS */
#define TUPLE_F_IN	1	/* CT_INGRESS */

struct ipv4_ct_tuple {
	__be32 daddr;
	__be32 saddr;
	__be16 dport;
	__be16 sport;
	__u8 nexthdr;
	__u8 flags;
} __packed;

struct ipv6_ct_tuple {
	__be32 daddr[4];
	__be32 saddr[4];
	__be16 dport;
	__be16 sport;
	__u8 nexthdr;
	__u8 flags;
} __packed;

union ct_tuple {
	struct ipv4_ct_tuple ip4;
	struct ipv6_ct_tuple ip6;
};

struct ct_entry {
	__u64 rx_packets;	/* received by the side that the entry belongs to, sent by it */
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u32 lifetime;		/* until when it holds, in seconds of the monotonic clock */
	__u16 rx_closing : 1,
	      tx_closing : 1,
	      nat46 : 1,
	      lb_loopback : 1,
	      seen_non_syn : 1,
	      node_port : 1,
	      proxy_redirect : 1,
	      dsr : 1,
	      from_l7lb : 1,
	      reserved1 : 1,
	      from_tunnel : 1,
	      reserved5 : 5;
	__be16 rev_nat_index;
	__u16 ifindex;
	__u8 tx_flags_seen;
	__u8 rx_flags_seen;
	__u32 src_sec_id;
	__u32 last_tx_report;
	__u32 last_rx_report;
};

/* Shared by all endpoints. LRU: when it is full, the connection that was silent longest makes room. */
#define CT_MAP(name, tuple, size) \
	struct { \
		__uint(type, CT_MAP_TYPE); \
		__type(key, tuple); \
		__type(value, struct ct_entry); \
		__uint(max_entries, size); \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
	} name __maps_btf

#ifdef ENABLE_IPV4
CT_MAP(CT_MAP_TCP4, struct ipv4_ct_tuple, CT_MAP_SIZE_TCP);
CT_MAP(CT_MAP_ANY4, struct ipv4_ct_tuple, CT_MAP_SIZE_ANY);
#endif /* ENABLE_IPV4 */
#ifdef ENABLE_IPV6
CT_MAP(CT_MAP_TCP6, struct ipv6_ct_tuple, CT_MAP_SIZE_TCP);
CT_MAP(CT_MAP_ANY6, struct ipv6_ct_tuple, CT_MAP_SIZE_ANY);
#endif /* ENABLE_IPV6 */

static __always_inline void *ct_map(__u8 protocol, const enum family family)
{
#ifdef ENABLE_IPV4
	if (family == FAMILY_IPV4)
		return protocol == IPPROTO_TCP ? (void *)&CT_MAP_TCP4 : (void *)&CT_MAP_ANY4;
#endif /* ENABLE_IPV4 */
#ifdef ENABLE_IPV6
	if (family == FAMILY_IPV6)
		return protocol == IPPROTO_TCP ? (void *)&CT_MAP_TCP6 : (void *)&CT_MAP_ANY6;
#endif /* ENABLE_IPV6 */
	return NULL;
}

/*
 * Of a clock that a tick of the kernel moves on: it costs a tenth of the exact one, and
 * seconds will do. A kernel without the helper has the exact clock alone.
 */
static __always_inline __u32 ct_now(void)
{
#ifdef HAVE_KTIME_GET_COARSE_NS
	return (__u32)(ktime_get_coarse_ns() / 1000000000);
#else
	return (__u32)(ktime_get_ns() / 1000000000);
#endif /* HAVE_KTIME_GET_COARSE_NS */
}

/* The tuple of the connection that a packet began, or, with `reply`, of the one that it answers. */
static __always_inline void ct_tuple_of(union ct_tuple *tuple, const struct packet *pkt, __u8 dir, const bool reply,
					const enum family family)
{
	const union ipaddr *daddr = reply ? &pkt->daddr : &pkt->saddr;
	const union ipaddr *saddr = reply ? &pkt->saddr : &pkt->daddr;
	const __be16 dport = reply ? pkt->sport : pkt->dport;
	const __be16 sport = reply ? pkt->dport : pkt->sport;
	const __u8 flags = reply ? !dir : dir;

	if (family == FAMILY_IPV4) {
		tuple->ip4 = (struct ipv4_ct_tuple){ daddr->ip4, saddr->ip4, dport, sport, pkt->protocol, flags };
		return;
	}
	memcpy(tuple->ip6.daddr, daddr, sizeof(tuple->ip6.daddr));
	memcpy(tuple->ip6.saddr, saddr, sizeof(tuple->ip6.saddr));
	tuple->ip6.dport = dport;
	tuple->ip6.sport = sport;
	tuple->ip6.nexthdr = pkt->protocol;
	tuple->ip6.flags = flags;
}

/* An entry whose time is over is none, whether or not the collector has been there. */
static __always_inline struct ct_entry *ct_find(const struct packet *pkt, __u8 dir, const bool reply, __u32 now,
						const enum family family)
{
	union ct_tuple tuple;
	struct ct_entry *entry;

	ct_tuple_of(&tuple, pkt, dir, reply, family);
	/*
	 * A call for each map, kept apart by the asm: of one call with either of them the
	 * kernel makes an indirect one.
	 */
	if (pkt->protocol == IPPROTO_TCP) {
		entry = map_lookup_elem(ct_map(IPPROTO_TCP, family), &tuple);
		asm volatile("" : "+r"(entry));
	} else {
		entry = map_lookup_elem(ct_map(pkt->protocol, family), &tuple);
	}
	return entry && entry->lifetime >= now ? entry : NULL;
}

static __always_inline bool ct_is_dead(const struct ct_entry *entry)
{
	return entry->rx_closing && entry->tx_closing;
}

/* A SYN, and not the answer to one. */
static __always_inline bool ct_is_opening(const struct packet *pkt)
{
	return pkt->protocol == IPPROTO_TCP && (pkt->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN;
}

/*
 * Is a packet the first of another connection, with the ports of this one? A SYN is, once
 * this one has got beyond SYNs: who sends it knows nothing of it any more. Where the
 * policy is asked in any case, only a connection that is closing gives way: the SYN may
 * be forged.
 */
static __always_inline bool ct_begins_anew(const struct packet *pkt, const struct ct_entry *entry, const bool asked)
{
	return ct_is_opening(pkt) && (asked ? entry->rx_closing || entry->tx_closing : entry->seen_non_syn);
}

/* What TCP flags mean for the entry; it dies once both sides have closed, or with a reset. */
static __always_inline void ct_see_flags(struct ct_entry *entry, __u8 flags, const enum ct_dir dir, __u32 now)
{
	__u8 *seen = dir == CT_EGRESS ? &entry->tx_flags_seen : &entry->rx_flags_seen;
	__u32 lifetime = CT_CONNECTION_LIFETIME_TCP;

	if ((flags & (TCP_FLAG_FIN | TCP_FLAG_SYN | TCP_FLAG_RST)) != TCP_FLAG_SYN)
		entry->seen_non_syn = 1;
	if (flags & TCP_FLAG_RST) {
		entry->rx_closing = 1;
		entry->tx_closing = 1;
	} else if (*seen & TCP_FLAG_RST) {
		/* Who has reset goes on: so it was somebody else, and TCP took no notice of it (RFC 5961, 3). */
		*seen &= ~TCP_FLAG_RST;
		entry->rx_closing = !!(entry->rx_flags_seen & TCP_FLAG_FIN);
		entry->tx_closing = !!(entry->tx_flags_seen & TCP_FLAG_FIN);
	}
	if (flags & TCP_FLAG_FIN && dir == CT_EGRESS)
		entry->tx_closing = 1;
	if (flags & TCP_FLAG_FIN && dir == CT_INGRESS)
		entry->rx_closing = 1;
	/* A dead entry lasts while what was lost at the end is sent again. */
	if (ct_is_dead(entry))
		lifetime = CT_CLOSE_TIMEOUT;
	else if (!entry->seen_non_syn)
		lifetime = CT_SYN_TIMEOUT;
	/* Once a second is enough, and keeps the line in other CPUs' caches. */
	if (entry->lifetime != now + lifetime)
		entry->lifetime = now + lifetime;
}

/* Whether this packet is worth a trace: it shows new flags, or there was none for some time. */
static __always_inline bool ct_report(__u8 *seen, __u32 *last, __u8 flags, __u32 now)
{
	bool news = flags & ~*seen & CT_REPORT_FLAGS;

	if (flags & ~*seen)
		*seen |= flags;
	if (!news && *last + CT_REPORT_INTERVAL >= now)
		return false;
	*last = now;
	return true;
}

static __always_inline void ct_account(const struct __ctx_buff *ctx, struct packet *pkt, struct ct_entry *entry,
				       const enum ct_dir dir, __u32 now)
{
	bool report;

	if (pkt->protocol == IPPROTO_TCP)
		ct_see_flags(entry, pkt->tcp_flags, dir, now);
	else if (entry->lifetime != now + CT_CONNECTION_LIFETIME_NONTCP)
		entry->lifetime = now + CT_CONNECTION_LIFETIME_NONTCP;
	if (dir == CT_EGRESS) {
		__sync_fetch_and_add(&entry->tx_packets, 1);
		__sync_fetch_and_add(&entry->tx_bytes, ctx->len);
		report = ct_report(&entry->tx_flags_seen, &entry->last_tx_report, pkt->tcp_flags, now);
	} else {
		__sync_fetch_and_add(&entry->rx_packets, 1);
		__sync_fetch_and_add(&entry->rx_bytes, ctx->len);
		report = ct_report(&entry->rx_flags_seen, &entry->last_rx_report, pkt->tcp_flags, now);
	}
	pkt->monitor = report ? TRACE_PAYLOAD_LEN : 0;
}

/*
 * Is an ICMP error about a connection that we know? It quotes a packet that went the
 * other way, with the first eight bytes of its upper layer at least; a later
 * fragment has none, and does not count: what stops it has stopped the first one too.
 */
static __always_inline bool ct_is_related(const struct __ctx_buff *ctx, const struct packet *pkt,
					  const enum ct_dir dir, __u32 now, const enum family family)
{
	const __u8 other = dir == CT_EGRESS ? CT_INGRESS : CT_EGRESS;
	const __u32 off = pkt->l4_off + sizeof(struct icmphdr);
	struct packet quoted = {};

	if (family == FAMILY_IPV4) {
		struct iphdr ip;

		if (skb_load_bytes(ctx, off, &ip, sizeof(ip)))
			return false;
		/* Whatever is said of fragments here: a router makes them of what was sent whole. */
		ipv4_fill(&quoted, &ip, off);
	} else {
		struct ipv6hdr ip;

		if (skb_load_bytes(ctx, off, &ip, sizeof(ip)) || ipv6_fill(ctx, &quoted, &ip, off))
			return false;
	}
	/* Only who sent the quoted packet is told about it. */
	if (quoted.fragment == FRAGMENT_LATER || !ip_equal(&quoted.saddr, &pkt->daddr) ||
	    l4_load(ctx, &quoted, family))
		return false;
	return ct_find(&quoted, other, true, now, family) || ct_find(&quoted, other, false, now, family);
}

/*
 * Fill pkt->ct, update the connection if there is one: 0, or why the packet is dropped.
 * Answers come first, because they pass whatever the policy says.
 */
static __always_inline int ct_lookup(const struct __ctx_buff *ctx, struct packet *pkt, const enum ct_dir dir,
				     const enum family family)
{
	const __u32 now = ct_now();
	struct ct_entry *entry;
	int ret = l4_parse(ctx, pkt, family);

	if (ret)
		return ret;
	pkt->ct = CT_NEW;
	pkt->monitor = TRACE_PAYLOAD_LEN;
	if (icmp_is_error(pkt, family)) {
		if (ct_is_related(ctx, pkt, dir, now, family))
			pkt->ct = CT_RELATED;
		return 0;
	}
	entry = ct_find(pkt, (__u8)dir, true, now, family);
	if (entry && !ct_begins_anew(pkt, entry, false)) {
		pkt->ct = CT_REPLY;
	} else {
		entry = ct_find(pkt, (__u8)dir, false, now, family);
		if (!entry)
			return 0;
		if (ct_begins_anew(pkt, entry, dir == CT_INGRESS)) {
			pkt->ct = CT_REOPENED;
			return 0;
		}
		pkt->ct = CT_ESTABLISHED;
	}
	ct_account(ctx, pkt, entry, dir, now);
	return 0;
}

/* Make the entry of a packet that was allowed, or begin it anew; an error message begins no connection. */
static __always_inline int ct_create(const struct __ctx_buff *ctx, struct packet *pkt, __u32 src_label,
				     bool from_tunnel, const enum ct_dir dir, const enum family family)
{
	const __u32 now = ct_now();
	struct ct_entry entry = {};
	union ct_tuple tuple;

	if (icmp_is_error(pkt, family))
		return 0;
	entry.src_sec_id = src_label;
	entry.from_tunnel = from_tunnel;
	ct_account(ctx, pkt, &entry, dir, now);
	ct_tuple_of(&tuple, pkt, (__u8)dir, false, family);
	return map_update_elem(ct_map(pkt->protocol, family), &tuple, &entry, BPF_ANY) ? DROP_CT_CREATE_FAILED : 0;
}

#endif /* RELOADLAB_CONNTRACK_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_L4_H
#define RELOADLAB_L4_H

#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include "ip.h"

#define TCP_FLAG_FIN	0x01
#define TCP_FLAG_SYN	0x02
#define TCP_FLAG_RST	0x04
#define TCP_FLAG_ACK	0x10

/* Where the flags stand in a TCP header. */
#define TCP_FLAGS_OFF	13

static __always_inline bool icmp_is_error(const struct packet *pkt, const enum family family)
{
	__u16 type = bpf_ntohs(pkt->rule_port);

	if (family == FAMILY_IPV6)
		return pkt->protocol == NEXTHDR_ICMP && type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return pkt->protocol == IPPROTO_ICMP &&
	       (type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB);
}

/*
 * Fill the ports from the upper layer's header. Of an echo the id is the port
 * of who asks, so that request and reply are one connection; other messages have none.
 */
static __always_inline int l4_load(const struct __ctx_buff *ctx, struct packet *pkt, const enum family family)
{
	struct icmphdr icmp;
	__be16 ports[2];

	switch (pkt->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (skb_load_bytes(ctx, pkt->l4_off, ports, sizeof(ports)))
			return DROP_CT_INVALID_HDR;
		pkt->sport = ports[0];
		pkt->dport = ports[1];
		pkt->rule_port = ports[1];
		return 0;
	case IPPROTO_ICMP:
	case NEXTHDR_ICMP:
		if ((pkt->protocol == IPPROTO_ICMP) != (family == FAMILY_IPV4))
			return DROP_CT_UNKNOWN_PROTO;
		if (skb_load_bytes(ctx, pkt->l4_off, &icmp, sizeof(icmp)))
			return DROP_CT_INVALID_HDR;
		pkt->rule_port = bpf_htons(icmp.type);
		if (icmp.type == (family == FAMILY_IPV4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST))
			pkt->sport = icmp.id;
		else if (icmp.type == (family == FAMILY_IPV4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY))
			pkt->dport = icmp.id;
		return 0;
	default:
		return DROP_CT_UNKNOWN_PROTO;
	}
}

/* Which datagram: identifications are counted per protocol in IPv4 (RFC 791), but not in IPv6. */
struct fragment_key {
	union ipaddr daddr;
	union ipaddr saddr;
	__be32 id;
	__u8 protocol;
	__u8 pad[3];
};

/* What the first fragment has and the later ones lack. */
struct fragment_ports {
	__be16 sport;
	__be16 dport;
	__be16 rule_port;
	__u8 protocol;
	__u8 pad;
};

#define FRAGMENTS_MAP(name) \
	struct { \
		__uint(type, BPF_MAP_TYPE_LRU_HASH); \
		__type(key, struct fragment_key); \
		__type(value, struct fragment_ports); \
		__uint(max_entries, CILIUM_IPV4_FRAG_MAP_MAX_ENTRIES); \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
	} name __maps_btf

#ifdef ENABLE_IPV4_FRAGMENTS
FRAGMENTS_MAP(IPV4_FRAG_DATAGRAMS_MAP);
#endif /* ENABLE_IPV4_FRAGMENTS */
#ifdef ENABLE_IPV6_FRAGMENTS
FRAGMENTS_MAP(IPV6_FRAG_DATAGRAMS_MAP);
#endif /* ENABLE_IPV6_FRAGMENTS */

/* NULL for a family whose fragments are dropped. */
static __always_inline void *fragments_map(const enum family family __maybe_unused)
{
#ifdef ENABLE_IPV4_FRAGMENTS
	if (family == FAMILY_IPV4)
		return &IPV4_FRAG_DATAGRAMS_MAP;
#endif /* ENABLE_IPV4_FRAGMENTS */
#ifdef ENABLE_IPV6_FRAGMENTS
	if (family == FAMILY_IPV6)
		return &IPV6_FRAG_DATAGRAMS_MAP;
#endif /* ENABLE_IPV6_FRAGMENTS */
	return NULL;
}

static __always_inline void fragment_key_of(struct fragment_key *key, const struct packet *pkt,
					    const enum family family)
{
	key->daddr = pkt->daddr;
	key->saddr = pkt->saddr;
	key->id = pkt->fragment_id;
	key->protocol = family == FAMILY_IPV4 ? pkt->protocol : 0;
}

static __always_inline void fragment_remember(const struct packet *pkt, const enum family family)
{
	struct fragment_ports ports = {
		.sport = pkt->sport,
		.dport = pkt->dport,
		.rule_port = pkt->rule_port,
		.protocol = pkt->protocol,
	};
	struct fragment_key key = {};

	fragment_key_of(&key, pkt, family);
	map_update_elem(fragments_map(family), &key, &ports, BPF_ANY);
}

static __always_inline int fragment_recall(struct packet *pkt, const enum family family)
{
	struct fragment_key key = {};
	struct fragment_ports *ports;

	fragment_key_of(&key, pkt, family);
	ports = map_lookup_elem(fragments_map(family), &key);
	if (!ports)
		return DROP_FRAG_NOT_FOUND;
	pkt->sport = ports->sport;
	pkt->dport = ports->dport;
	pkt->rule_port = ports->rule_port;
	pkt->protocol = ports->protocol;
	return 0;
}

/* Ports and TCP flags of a packet that ip_parse() has filled: 0, or why it is dropped. */
static __always_inline int l4_parse(const struct __ctx_buff *ctx, struct packet *pkt, const enum family family)
{
	int ret;

	if (fragments_map(family) && pkt->fragment == FRAGMENT_LATER)
		return fragment_recall(pkt, family);
	ret = l4_load(ctx, pkt, family);
	if (ret)
		return ret;
	if (pkt->protocol == IPPROTO_TCP &&
	    skb_load_bytes(ctx, pkt->l4_off + TCP_FLAGS_OFF, &pkt->tcp_flags, sizeof(pkt->tcp_flags)))
		return DROP_CT_INVALID_HDR;
	if (fragments_map(family) && pkt->fragment == FRAGMENT_FIRST)
		fragment_remember(pkt, family);
	return 0;
}

#endif /* RELOADLAB_L4_H */

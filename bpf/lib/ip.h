/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_IP_H
#define RELOADLAB_IP_H

#include <linux/ip.h>
#include <linux/ipv6.h>
#include "common.h"
#include "drop.h"

/* Extension headers that are walked over; a packet with more of them is dropped. */
#define IPV6_MAX_EXTENSIONS 4

/* What becomes of a fragment: the addresses are known by then, the rest is for those who track it. */
#ifdef ENABLE_IPV4_FRAGMENTS
# define FRAGMENTS4_ERROR	0
#else
# define FRAGMENTS4_ERROR	DROP_FRAG_NOSUPPORT
#endif /* ENABLE_IPV4_FRAGMENTS */
#ifdef ENABLE_IPV6_FRAGMENTS
# define FRAGMENTS6_ERROR	0
#else
# define FRAGMENTS6_ERROR	DROP_FRAG_NOSUPPORT
#endif /* ENABLE_IPV6_FRAGMENTS */

/* Fill `pkt` from a header that stands at `off`: the packet's own, or one quoted in an error. */
static __always_inline int ipv4_fill(struct packet *pkt, const struct iphdr *ip, __u32 off)
{
	__u16 fragment = bpf_ntohs(ip->frag_off) & (IP_MF | IP_OFFSET);

	pkt->saddr.ip4 = ip->saddr;
	pkt->daddr.ip4 = ip->daddr;
	pkt->l4_off = off + ip->ihl * 4U;
	pkt->protocol = ip->protocol;
	pkt->ttl = ip->ttl;
	if (!fragment)
		return 0;
	pkt->fragment = fragment & IP_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
	pkt->fragment_id = ip->id;
	return FRAGMENTS4_ERROR;
}

static __always_inline int ipv4_parse(const struct __ctx_buff *ctx, struct packet *pkt)
{
	struct iphdr ip;
	__u32 header, total;

	if (skb_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)))
		return DROP_INVALID;
	header = ip.ihl * 4U;
	total = bpf_ntohs(ip.tot_len);
	if (ip.version != 4 || header < sizeof(ip) || total < header || ETH_HLEN + total > ctx->len)
		return DROP_INVALID;
	return ipv4_fill(pkt, &ip, ETH_HLEN);
}

/* A fragment that is a whole datagram (RFC 6946) is treated as one. */
static __always_inline int ipv6_parse_fragment(const struct __ctx_buff *ctx, struct packet *pkt)
{
	struct frag_hdr fragment;
	__u16 where;

	if (FRAGMENTS6_ERROR)
		return FRAGMENTS6_ERROR;
	if (skb_load_bytes(ctx, pkt->l4_off, &fragment, sizeof(fragment)))
		return DROP_INVALID;
	where = bpf_ntohs(fragment.frag_off);
	if (where & IPV6_FRAG_OFFSET)
		pkt->fragment = FRAGMENT_LATER;
	else if (where & IPV6_FRAG_MORE)
		pkt->fragment = FRAGMENT_FIRST;
	pkt->fragment_id = fragment.identification;
	pkt->protocol = fragment.nexthdr;
	pkt->l4_off += sizeof(fragment);
	return 0;
}

/* Find the upper layer; of a later fragment, what follows is not its header. */
static __always_inline int ipv6_skip_extensions(const struct __ctx_buff *ctx, struct packet *pkt)
{
	struct ipv6_opt_hdr opt;
	int i, ret;

#pragma unroll
	for (i = 0; i < IPV6_MAX_EXTENSIONS; i++) {
		switch (pkt->protocol) {
		case NEXTHDR_NONE:
			return DROP_INVALID_EXTHDR;
		case NEXTHDR_HOP:
		case NEXTHDR_ROUTING:
		case NEXTHDR_DEST:
		case NEXTHDR_AUTH:
			break;
		case NEXTHDR_FRAGMENT:
			ret = ipv6_parse_fragment(ctx, pkt);
			if (ret || pkt->fragment == FRAGMENT_LATER)
				return ret;
			continue;
		default:
			return 0;
		}
		if (skb_load_bytes(ctx, pkt->l4_off, &opt, sizeof(opt)))
			return DROP_INVALID;
		if (pkt->protocol == NEXTHDR_AUTH)
			pkt->l4_off += (opt.hdrlen + 2U) * 4;	/* RFC 4302, 2.2 */
		else
			pkt->l4_off += (opt.hdrlen + 1U) * 8;
		pkt->protocol = opt.nexthdr;
	}
	return DROP_INVALID_EXTHDR;
}

static __always_inline int ipv6_fill(const struct __ctx_buff *ctx, struct packet *pkt, const struct ipv6hdr *ip,
				     __u32 off)
{
	memcpy(&pkt->saddr, ip->saddr, sizeof(pkt->saddr));
	memcpy(&pkt->daddr, ip->daddr, sizeof(pkt->daddr));
	pkt->l4_off = off + sizeof(*ip);
	pkt->protocol = ip->nexthdr;
	pkt->ttl = ip->hop_limit;
	return ipv6_skip_extensions(ctx, pkt);
}

static __always_inline int ipv6_parse(const struct __ctx_buff *ctx, struct packet *pkt)
{
	struct ipv6hdr ip;

	if (skb_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)))
		return DROP_INVALID;
	/* A payload length of 0 is that of a jumbogram (BIG TCP), and is let through. */
	if (ip.version != 6 || ETH_HLEN + sizeof(ip) + bpf_ntohs(ip.payload_len) > ctx->len)
		return DROP_INVALID;
	return ipv6_fill(ctx, pkt, &ip, ETH_HLEN);
}

/* Validate the header and fill `pkt`, which the caller has zeroed: 0, or why it is dropped. */
static __always_inline int ip_parse(const struct __ctx_buff *ctx, struct packet *pkt, const enum family family)
{
	pkt->family = (__u8)family;
	return family == FAMILY_IPV4 ? ipv4_parse(ctx, pkt) : ipv6_parse(ctx, pkt);
}

/* fe80::/10, and the unspecified address: good on the link only. */
static __always_inline bool ipv6_is_link_local(const union ipaddr *addr)
{
	return (addr->ip6[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool ipv6_is_unspecified(const union ipaddr *addr)
{
	return !(addr->ip6[0] | addr->ip6[1] | addr->ip6[2] | addr->ip6[3]);
}

/* Broadcast, multicast and link-local destinations: no pod, no node, but the link itself. */
static __always_inline bool ip_stays_on_link(const struct packet *pkt, const enum family family)
{
	if (family == FAMILY_IPV4)
		return pkt->daddr.byte[0] >= 224;
	return pkt->daddr.byte[0] == 0xff || ipv6_is_link_local(&pkt->daddr);
}

/* Without branches, as eth_equal(). */
static __always_inline bool ip_equal(const union ipaddr *a, const union ipaddr *b)
{
	return !((a->ip6[0] ^ b->ip6[0]) | (a->ip6[1] ^ b->ip6[1]) | (a->ip6[2] ^ b->ip6[2]) | (a->ip6[3] ^ b->ip6[3]));
}

/* One hop less to live; a packet that has none left is dropped. */
static __always_inline int ip_decrement_ttl(struct __ctx_buff *ctx, const struct packet *pkt, const enum family family)
{
	const __u32 ttl_off = ETH_HLEN + __builtin_offsetof(struct iphdr, ttl);
	const __u32 check_off = ETH_HLEN + __builtin_offsetof(struct iphdr, check);
	const __u32 hop_off = ETH_HLEN + __builtin_offsetof(struct ipv6hdr, hop_limit);
	__u8 ttl = (__u8)(pkt->ttl - 1);

	if (pkt->ttl <= 1)
		return DROP_INVALID;
	if (family == FAMILY_IPV6)
		return skb_store_bytes(ctx, hop_off, &ttl, sizeof(ttl), BPF_F_RECOMPUTE_CSUM) ? DROP_WRITE_ERROR : 0;
	/* Both writes together leave a hardware checksum of the frame as it was: no flag. */
	if (l3_csum_replace(ctx, check_off, bpf_htons(pkt->ttl << 8), bpf_htons(ttl << 8), sizeof(__u16)))
		return DROP_CSUM_L3;
	return skb_store_bytes(ctx, ttl_off, &ttl, sizeof(ttl), 0) ? DROP_WRITE_ERROR : 0;
}

#endif /* RELOADLAB_IP_H */

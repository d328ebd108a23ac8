/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_ICMP6_H
#define RELOADLAB_ICMP6_H

#include <linux/icmpv6.h>
#include "ip.h"

/* Where the message stands in a frame without extension headers, as neighbour discovery sends them. */
#define ND_OFF (ETH_HLEN + sizeof(struct ipv6hdr))

/* An advertisement with the one option that it has here. */
struct nd_advert {
	struct nd_msg msg;
	struct nd_opt_ll_addr opt;
};

/* What the checksum of an upper layer covers besides the message (RFC 8200, 8.1). */
struct ipv6_pseudo {
	__be32 saddr[4];
	__be32 daddr[4];
	__be32 len;
	__u8 zero[3];
	__u8 nexthdr;
};

/* The ICMPv6 type, or -1 if the packet is none. */
static __always_inline int icmp6_type(const struct __ctx_buff *ctx, const struct packet *pkt)
{
	__u8 type;

	if (pkt->protocol != NEXTHDR_ICMP || pkt->fragment == FRAGMENT_LATER ||
	    skb_load_bytes(ctx, pkt->l4_off, &type, sizeof(type)))
		return -1;
	return type;
}

static __always_inline bool icmp6_is_solicitation(const struct packet *pkt, int type)
{
	return type == ICMPV6_NS && pkt->l4_off == ND_OFF;
}

/*
 * What a pod's kernel sends by itself from its link-local address (or from none), to
 * the link: neighbour and router discovery, multicast membership. It never goes
 * farther than the host side of the device, so it is no spoofed source.
 */
static __always_inline bool icmp6_is_link_housekeeping(const struct packet *pkt, int type)
{
	if (!ipv6_is_link_local(&pkt->saddr) && !ipv6_is_unspecified(&pkt->saddr))
		return false;
	if (!ip_stays_on_link(pkt, FAMILY_IPV6))
		return false;
	return type == ICMPV6_NS || type == ICMPV6_NA || type == ICMPV6_RS || type == ICMPV6_MLD_REPORT ||
	       type == ICMPV6_MLD_DONE || type == ICMPV6_MLD2_REPORT;
}

/*
 * Neighbour discovery from this very link, as its hop limit proves: whoever forwards a
 * packet takes one off. For packets whose ports are known; see rule_port.
 */
static __always_inline bool icmp6_is_discovery(const struct packet *pkt, const enum family family)
{
	__u16 type = bpf_ntohs(pkt->rule_port);

	return family == FAMILY_IPV6 && pkt->protocol == NEXTHDR_ICMP && pkt->ttl == ND_HOP_LIMIT &&
	       type >= ICMPV6_RS && type <= ICMPV6_REDIRECT;
}

/*
 * What kernels tell each other of a link, and no policy concerns: neighbour discovery, and
 * who listens to which group. For packets whose ports are known.
 */
static __always_inline bool icmp6_is_of_link(const struct packet *pkt, const enum family family)
{
	if (icmp6_is_discovery(pkt, family))
		return true;
	return family == FAMILY_IPV6 && pkt->protocol == NEXTHDR_ICMP &&
	       icmp6_is_link_housekeeping(pkt, bpf_ntohs(pkt->rule_port));
}

static __always_inline __sum16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

/* Load a solicitation and its IPv6 header: 0, or why it is dropped (RFC 4861, 7.1.1). */
static __always_inline int nd_load_solicitation(const struct __ctx_buff *ctx, struct ipv6hdr *ip, struct nd_msg *msg)
{
	if (skb_load_bytes(ctx, ETH_HLEN, ip, sizeof(*ip)) || skb_load_bytes(ctx, ND_OFF, msg, sizeof(*msg)))
		return DROP_INVALID;
	if (ip->hop_limit != ND_HOP_LIMIT || msg->code)
		return DROP_INVALID;
	/* Nobody has a multicast address. */
	return (msg->target[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000) ? DROP_INVALID : 0;
}

/* Rewrite the solicitation into the advertisement that `mac` has the target's address. */
static __always_inline int nd_write_advert(struct __ctx_buff *ctx, struct ipv6hdr *ip, const struct nd_msg *asked,
					   const union macaddr *mac)
{
	struct nd_advert advert = {};
	struct ipv6_pseudo pseudo = { .len = bpf_htonl(sizeof(advert)), .nexthdr = NEXTHDR_ICMP };
	struct ethhdr eth;
	__s64 sum;

	/* Not as an initialiser: the compiler would keep a copy of it in .rodata. */
	advert.msg.type = ICMPV6_NA;
	advert.msg.flags = bpf_htonl(ND_NA_ROUTER | ND_NA_SOLICITED | ND_NA_OVERRIDE);
	advert.opt.type = ND_OPT_TARGET_LL_ADDR;
	advert.opt.length = 1;
	memcpy(advert.msg.target, asked->target, sizeof(advert.msg.target));
	memcpy(advert.opt.addr, mac->addr, ETH_ALEN);
	memcpy(pseudo.saddr, asked->target, sizeof(pseudo.saddr));
	memcpy(pseudo.daddr, ip->saddr, sizeof(pseudo.daddr));
	sum = csum_diff(NULL, 0, &pseudo, sizeof(pseudo), 0);
	sum = csum_diff(NULL, 0, &advert, sizeof(advert), (__wsum)sum);
	advert.msg.checksum = csum_fold((__u64)sum);

	memcpy(ip->saddr, pseudo.saddr, sizeof(ip->saddr));
	memcpy(ip->daddr, pseudo.daddr, sizeof(ip->daddr));
	ip->payload_len = bpf_htons(sizeof(advert));

	if (skb_load_bytes(ctx, 0, &eth, sizeof(eth)))
		return DROP_INVALID;
	memcpy(eth.h_dest, eth.h_source, ETH_ALEN);
	memcpy(eth.h_source, mac->addr, ETH_ALEN);

	/* A solicitation may have no option or others: ours must fit, and nothing follow it. */
	if (ctx->len != ND_OFF + sizeof(advert) && skb_change_tail(ctx, ND_OFF + sizeof(advert), 0))
		return DROP_WRITE_ERROR;
	if (skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0) ||
	    skb_store_bytes(ctx, ETH_HLEN, ip, sizeof(*ip), BPF_F_RECOMPUTE_CSUM) ||
	    skb_store_bytes(ctx, ND_OFF, &advert, sizeof(advert), BPF_F_RECOMPUTE_CSUM))
		return DROP_WRITE_ERROR;
	return 0;
}

#endif /* RELOADLAB_ICMP6_H */

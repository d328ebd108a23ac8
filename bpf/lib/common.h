/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_COMMON_H
#define RELOADLAB_COMMON_H

#include <linux/if_ether.h>
#include <bpf/helpers.h>
#include <bpf/maps.h>
#include "utils.h"
#include "config.h"

/* An address of either family; an IPv4 address is in .ip4 and the rest is zero. */
union ipaddr {
	__be32 ip4;
	__be32 ip6[4];
	__u8 byte[16];
};

union macaddr {
	struct {
		__u32 p1;
		__u16 p2;
	};
	__u8 addr[ETH_ALEN];
};

/* How the keys of maps name a family. */
enum family {
	FAMILY_IPV4 = 1,
	FAMILY_IPV6 = 2,
};

/* What of a datagram a packet is. */
enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,		/* has the header of the upper layer */
	FRAGMENT_LATER,
};

/* What connection tracking says of a packet; conntrack.h. */
enum ct_status {
	CT_NEW,
	CT_ESTABLISHED,
	CT_REPLY,
	CT_RELATED,		/* an ICMP error about a packet of a known connection */
	CT_REOPENED,		/* a SYN for a connection that is closing */
	CT_UNTRACKED,
};

/* What the programs need to know of an IP packet, the same for both families. */
struct packet {
	union ipaddr saddr;
	union ipaddr daddr;
	__be16 sport;
	__be16 dport;
	__be16 rule_port;	/* what a policy rule calls the port: of the destination, or the ICMP type */
	__u8 family;		/* enum family, a constant in each program */
	__u8 protocol;		/* of the upper layer */
	__u32 l4_off;		/* from the start of the frame */
	__be32 fragment_id;
	__u8 fragment;		/* enum fragment */
	__u8 ttl;
	__u8 tcp_flags;
	__u8 ct;		/* enum ct_status */
	__u32 monitor;		/* bytes of the packet that connection tracking wants in a trace, or 0 */
};

/*
 * Words of __sk_buff.cb: what one program of a chain leaves for the next one. They
 * survive tail calls and redirects, so every entry program clears them first, except
 * CB_GENERATION, which it sets. At XDP, where nothing follows but tail calls, they are
 * in a map.
 */
enum cb_word {
	CB_SRC_LABEL,		/* identity of the source */
	CB_IFINDEX,		/* device of the destination pod */
	CB_GENERATION,		/* which load the chain began with; see hits.h */
	CB_FROM_HOST,		/* not 0: the packet comes from the host */
	CB_FROM_TUNNEL,		/* not 0: the packet came through the tunnel */
	CB_WORDS,
};

/* What the host's policy program finds there instead: the pod that it is to hand the packet to. */
#define CB_DST_ENDPOINT_ID CB_SRC_LABEL

/* Which of them it is, a source says before its first #include. */
#ifdef CTX_XDP
# include "ctx_xdp.h"
#else
# include "ctx_skb.h"
#endif /* CTX_XDP */

static __always_inline void clear_cb(struct __ctx_buff *ctx)
{
	cb_store(ctx, CB_SRC_LABEL, 0);
	cb_store(ctx, CB_IFINDEX, 0);
	cb_store(ctx, CB_FROM_HOST, 0);
	cb_store(ctx, CB_FROM_TUNNEL, 0);
}

#endif /* RELOADLAB_COMMON_H */

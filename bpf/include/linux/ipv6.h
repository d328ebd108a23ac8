/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_LINUX_IPV6_H
#define RELOADLAB_LINUX_IPV6_H

#include <linux/types.h>

/* Extension headers (RFC 8200, 4) and the upper layer that is looked at. */
#define NEXTHDR_HOP		0
#define NEXTHDR_ROUTING		43
#define NEXTHDR_FRAGMENT	44
#define NEXTHDR_AUTH		51
#define NEXTHDR_ICMP		58
#define NEXTHDR_NONE		59
#define NEXTHDR_DEST		60

struct ipv6hdr {
	__u8 priority : 4,	/* BPF objects here are little endian */
	     version : 4;
	__u8 flow_lbl[3];
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

/* frag_off: the offset, and "more fragments" (RFC 8200, 4.5). */
#define IPV6_FRAG_OFFSET	0xfff8
#define IPV6_FRAG_MORE		0x0001

struct frag_hdr {
	__u8 nexthdr;
	__u8 reserved;
	__be16 frag_off;
	__be32 identification;
};

/* What the extension headers that are walked over have in common. */
struct ipv6_opt_hdr {
	__u8 nexthdr;
	__u8 hdrlen;
};

#endif /* RELOADLAB_LINUX_IPV6_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_LINUX_IP_H
#define RELOADLAB_LINUX_IP_H

#include <linux/types.h>

/* frag_off: "more fragments" and the offset (RFC 791); "don't fragment" is 0x4000. */
#define IP_MF		0x2000
#define IP_OFFSET	0x1fff

#define IPPROTO_ICMP	1
#define IPPROTO_TCP	6
#define IPPROTO_UDP	17
#define IPPROTO_SCTP	132

struct iphdr {
	__u8 ihl : 4,		/* BPF objects here are little endian */
	     version : 4;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

#endif /* RELOADLAB_LINUX_IP_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_LINUX_IF_ARP_H
#define RELOADLAB_LINUX_IF_ARP_H

#include <linux/if_ether.h>

#define ARPHRD_ETHER	1
#define ARPOP_REQUEST	1
#define ARPOP_REPLY	2

struct arphdr {
	__be16 ar_hrd;
	__be16 ar_pro;
	__u8 ar_hln;
	__u8 ar_pln;
	__be16 ar_op;
} __attribute__((packed));

/* The addresses behind the header, for IPv4 over Ethernet (RFC 826). */
struct arp_ipv4 {
	__u8 sha[ETH_ALEN];
	__be32 sip;
	__u8 tha[ETH_ALEN];
	__be32 tip;
} __attribute__((packed));

#endif /* RELOADLAB_LINUX_IF_ARP_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_LINUX_ICMP_H
#define RELOADLAB_LINUX_ICMP_H

#include <linux/types.h>

/* Types (RFC 792); those of ICMPv6 stand in icmpv6.h. */
#define ICMP_ECHOREPLY		0
#define ICMP_DEST_UNREACH	3
#define ICMP_ECHO		8
#define ICMP_TIME_EXCEEDED	11
#define ICMP_PARAMETERPROB	12

/* Of both versions, up to what a message of either is about: an echo, or another packet. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};

#endif /* RELOADLAB_LINUX_ICMP_H */

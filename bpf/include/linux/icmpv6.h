/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_LINUX_ICMPV6_H
#define RELOADLAB_LINUX_ICMPV6_H

#include <linux/ipv6.h>

/* Types: errors and echo (RFC 4443). */
#define ICMPV6_DEST_UNREACH	1
#define ICMPV6_PARAMPROB	4
#define ICMPV6_ECHO_REQUEST	128
#define ICMPV6_ECHO_REPLY	129

/* Types: multicast listener discovery (RFC 2710, 3810), neighbour discovery (RFC 4861). */
#define ICMPV6_MLD_REPORT	131
#define ICMPV6_MLD_DONE		132
#define ICMPV6_RS		133
#define ICMPV6_NS		135
#define ICMPV6_NA		136
#define ICMPV6_REDIRECT		137
#define ICMPV6_MLD2_REPORT	143

/* Flags of an advertisement, the highest bits of its second word. */
#define ND_NA_ROUTER		0x80000000
#define ND_NA_SOLICITED		0x40000000
#define ND_NA_OVERRIDE		0x20000000

/* Options: link-layer address of the sender, of the target; length is in units of 8 bytes. */
#define ND_OPT_SOURCE_LL_ADDR	1
#define ND_OPT_TARGET_LL_ADDR	2

/* Every ND message comes from the link itself. */
#define ND_HOP_LIMIT		255

/* A solicitation or an advertisement up to its first option (RFC 4861, 4.3 and 4.4). */
struct nd_msg {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 flags;
	__be32 target[4];
};

struct nd_opt_ll_addr {
	__u8 type;
	__u8 length;
	__u8 addr[6];
};

#endif /* RELOADLAB_LINUX_ICMPV6_H */

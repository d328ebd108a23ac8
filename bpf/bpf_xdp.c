/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The program of a native device at XDP, before the kernel has made a socket buffer of
 * the frame: the prefilter, which denies packets by their source address. It reads the
 * headers alone, which are in the first piece of a frame that is in several.
 */
#define CTX_XDP

#include <node_config.h>
#include <netdev_config.h>
#include <filter_config.h>

#include <linux/ip.h>
#include <linux/ipv6.h>
#include "lib/ethertype.h"
#include "lib/prefilter.h"
#include "lib/program.h"

static __always_inline int xdp_receive(const struct __ctx_buff *ctx, const enum family family)
{
	const void *header = (const void *)(unsigned long)ctx->data + ETH_HLEN;
	const void *data_end = (const void *)(unsigned long)ctx->data_end;
	const struct iphdr *ip4 = header;
	const struct ipv6hdr *ip6 = header;

	if (header + (family == FAMILY_IPV4 ? sizeof(*ip4) : sizeof(*ip6)) > data_end)
		return DROP_INVALID;
	if (prefilter_denies(family == FAMILY_IPV4 ? (const void *)&ip4->saddr : ip6->saddr, family))
		return DROP_POLICY_DENY;
	return XDP_PASS;
}

#ifdef ENABLE_IPV4
TAIL_PROGRAM(tail_xdp_ipv4, CILIUM_CALL_IPV4_XDP, PROGRAM_IPV4_XDP,
	     0, METRIC_INGRESS, xdp_receive(ctx, FAMILY_IPV4))
#endif /* ENABLE_IPV4 */

#ifdef ENABLE_IPV6
TAIL_PROGRAM(tail_xdp_ipv6, CILIUM_CALL_IPV6_XDP, PROGRAM_IPV6_XDP,
	     0, METRIC_INGRESS, xdp_receive(ctx, FAMILY_IPV6))
#endif /* ENABLE_IPV6 */

/* The slot for the packet's family, called or missed; what is not IP is left to the kernel. */
__section(XDP_SECTION)
int cil_xdp_entry(struct __ctx_buff *ctx)
{
	begin_chain(ctx, PROGRAM_XDP_ENTRY);
	switch (eth_protocol(ctx)) {
#ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		ep_tail_call(ctx, CILIUM_CALL_IPV4_XDP);
		return drop_from(ctx, 0, DROP_MISSED_TAIL_CALL, METRIC_INGRESS);
#endif /* ENABLE_IPV4 */
#ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		ep_tail_call(ctx, CILIUM_CALL_IPV6_XDP);
		return drop_from(ctx, 0, DROP_MISSED_TAIL_CALL, METRIC_INGRESS);
#endif /* ENABLE_IPV6 */
	default:
		return XDP_PASS;
	}
}

char ____license[] __section("license") = "Dual BSD/GPL";

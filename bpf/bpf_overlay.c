/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Programs of the tunnel device, which runs in collect-metadata mode: the sender's
 * identity comes as the VNI of the tunnel key.
 */
#include <node_config.h>
#include <netdev_config.h>

#include "lib/delivery.h"
#include "lib/ipcache.h"
#include "lib/program.h"

/* To the host's stack: transmitting on cilium_net arrives at the ingress of cilium_host. */
static __always_inline int overlay_to_host(struct __ctx_buff *ctx, const struct trace *trace)
{
	const union macaddr cilium_host = HOST_IFINDEX_MAC;
	const union macaddr cilium_net = CILIUM_NET_MAC;
	int ret = eth_store(ctx, cilium_host.addr, cilium_net.addr);

	if (ret)
		return ret;
	trace_packet(ctx, trace, TRACE_TO_HOST);
	return redirect(HOST_IFINDEX, 0);
}

/* The identity that the sending node vouches for, or why the packet is dropped. */
static __always_inline int overlay_source(struct __ctx_buff *ctx, const struct packet *pkt, __u32 *identity,
					  const enum family family)
{
	struct bpf_tunnel_key key = {};

	if (skb_get_tunnel_key(ctx, &key, sizeof(key), 0))
		return DROP_NO_TUNNEL_KEY;
	*identity = key.tunnel_id;
	/* "Host" is this node; another node calls itself a remote node. */
	if (*identity == HOST_ID)
		return DROP_INVALID_IDENTITY;
	/* Which address range, that of this node: the other one's identities for them mean nothing here. */
	*identity = resolve_source(*identity, pkt, family);
	/* Which node, and whether it is the API server's, only ipcache knows. */
	if (*identity == REMOTE_NODE_ID || *identity == KUBE_APISERVER_NODE_ID) {
		struct remote_endpoint_info *info = lookup_ipcache(&pkt->saddr, family);

		if (info)
			*identity = info->sec_identity;
	}
	return 0;
}

static __always_inline int overlay_receive(struct __ctx_buff *ctx, struct trace *trace, const enum family family)
{
	struct delivery from = { .dir = METRIC_INGRESS, .from_tunnel = true };
	struct endpoint_info *ep;
	struct packet pkt = {};
	int ret = ip_parse(ctx, &pkt, family);

	if (!ret)
		ret = overlay_source(ctx, &pkt, &trace->src_label, family);
	if (ret)
		return ret;
	ep = lookup_endpoint(&pkt.daddr, family);
	if (!ep || ep->flags & ENDPOINT_F_HOST)
		return overlay_to_host(ctx, trace);
	from.src_label = trace->src_label;
	return deliver_local(ctx, &pkt, ep, from, family);
}

#ifdef ENABLE_IPV4
TAIL_PROGRAM(tail_handle_ipv4, CILIUM_CALL_IPV4_FROM_OVERLAY, PROGRAM_IPV4_FROM_OVERLAY,
	     0, METRIC_INGRESS, overlay_receive(ctx, &trace, FAMILY_IPV4))
#endif /* ENABLE_IPV4 */

#ifdef ENABLE_IPV6
TAIL_PROGRAM(tail_handle_ipv6, CILIUM_CALL_IPV6_FROM_OVERLAY, PROGRAM_IPV6_FROM_OVERLAY,
	     0, METRIC_INGRESS, overlay_receive(ctx, &trace, FAMILY_IPV6))
#endif /* ENABLE_IPV6 */

/* The slot for the packet's family, called or missed; what is not IP goes to the stack. */
static __always_inline int overlay_from_overlay(struct __ctx_buff *ctx)
{
	switch (eth_protocol(ctx)) {
	case bpf_htons(ETH_P_IPV6):
#ifdef ENABLE_IPV6
		ep_tail_call(ctx, CILIUM_CALL_IPV6_FROM_OVERLAY);
		return DROP_MISSED_TAIL_CALL;
#else
		return DROP_UNKNOWN_L3;
#endif /* ENABLE_IPV6 */
	case bpf_htons(ETH_P_IP):
#ifdef ENABLE_IPV4
		ep_tail_call(ctx, CILIUM_CALL_IPV4_FROM_OVERLAY);
		return DROP_MISSED_TAIL_CALL;
#else
		return DROP_UNKNOWN_L3;
#endif /* ENABLE_IPV4 */
	default:
		return pass_from(ctx, 0, TRACE_TO_STACK);
	}
}

/* Ingress of the tunnel device. */
__section("from-overlay")
int cil_from_overlay(struct __ctx_buff *ctx)
{
	int ret;

	begin_chain(ctx, PROGRAM_FROM_OVERLAY);
	clear_cb(ctx);
	trace_from(ctx, 0, TRACE_FROM_OVERLAY);
	ret = overlay_from_overlay(ctx);
	return ret < 0 ? drop_from(ctx, 0, ret, METRIC_INGRESS) : ret;
}

/* Egress of the tunnel device. */
__section("to-overlay")
int cil_to_overlay(struct __ctx_buff *ctx)
{
	begin_chain(ctx, PROGRAM_TO_OVERLAY);
	return pass_from(ctx, 0, TRACE_TO_OVERLAY);
}

char ____license[] __section("license") = "Dual BSD/GPL";

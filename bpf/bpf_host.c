/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Programs of the host: cilium_host in both directions, cilium_net ingress, and the
 * native devices. One object, of which every device gets a copy with constants of its
 * own. The host must stay reachable whatever happens here, so what is not meant for a
 * pod passes.
 */
#include <node_config.h>
#include <ep_config.h>

#define EVENT_SOURCE HOST_EP_ID

#include "lib/delivery.h"
#include "lib/encap.h"
#include "lib/ipcache.h"
#include "lib/policy.h"
#include "lib/program.h"

#ifdef ENABLE_HOST_FIREWALL
# include "lib/host_firewall.h"
#endif /* ENABLE_HOST_FIREWALL */

/*
 * The other end of cilium_host takes only what is addressed to it; the stack has put
 * the MAC of cilium_host itself there, because the device has no neighbours (NOARP).
 */
static __always_inline int host_to_cilium_net(struct __ctx_buff *ctx, const struct trace *trace)
{
	const union macaddr cilium_net = CILIUM_NET_MAC;
	int ret = eth_store_dest(ctx, cilium_net.addr);

	return ret ? ret : pass_packet(ctx, trace, TRACE_TO_STACK);
}

/* What the stack routed to cilium_host: for pods here, for pods behind the tunnel, or for the host. */
static __always_inline int host_from_host(struct __ctx_buff *ctx, struct trace *trace, const enum family family)
{
	struct delivery from = { .dir = METRIC_INGRESS, .from_host = true };
	struct remote_endpoint_info *info;
	struct endpoint_info *ep;
	struct packet pkt = {};
	int ret = ip_parse(ctx, &pkt, family);

#ifdef ENABLE_HOST_FIREWALL
	ret = host_policy_egress(ctx, &pkt, ret, trace, trace->src_label == HOST_ID, family);
#endif /* ENABLE_HOST_FIREWALL */
	if (ret)
		return ret;
	if (ip_stays_on_link(&pkt, family))
		return pass_packet(ctx, trace, TRACE_TO_STACK);
	ep = lookup_endpoint(&pkt.daddr, family);
	if (ep && ep->flags & ENDPOINT_F_HOST)
		return host_to_cilium_net(ctx, trace);
	trace->src_label = resolve_source(trace->src_label, &pkt, family);
	from.src_label = trace->src_label;
	if (ep)
		return deliver_local(ctx, &pkt, ep, from, family);
	info = lookup_ipcache(&pkt.daddr, family);
#ifdef USE_TUNNEL
	ret = encap_and_redirect(ctx, &pkt, info ? info->tunnel_endpoint : 0, trace, family);
	if (ret != DROP_NO_TUNNEL_ENDPOINT)
		return ret;
#endif /* USE_TUNNEL */
	/*
	 * The stack would route a packet for an unknown pod here again, and again. An address
	 * range that policies name is outside like the rest of the world.
	 */
	if (!info || identity_to_carry(info->sec_identity) == WORLD_ID)
		return DROP_UNROUTABLE;
	return host_to_cilium_net(ctx, trace);
}

/* What a native device received. Without host routing the stack delivers it, seen by its conntrack. */
static __always_inline int host_from_netdev(struct __ctx_buff *ctx, struct trace *trace,
					    const enum family family __maybe_unused)
{
#if defined(ENABLE_HOST_ROUTING) || defined(ENABLE_HOST_FIREWALL)
	struct packet pkt = {};
	int ret = ip_parse(ctx, &pkt, family);
#endif /* ENABLE_HOST_ROUTING || ENABLE_HOST_FIREWALL */

#ifdef ENABLE_HOST_FIREWALL
	{
		int verdict = host_policy_ingress(ctx, &pkt, ret, trace, family);

		if (verdict)
			return verdict;
	}
#endif /* ENABLE_HOST_FIREWALL */
#ifdef ENABLE_HOST_ROUTING
	/* What cannot be parsed here is not for a pod, or the stack's to reassemble or to refuse. */
	if (!ret) {
		struct delivery from = { .src_label = trace->src_label, .dir = METRIC_INGRESS };
		struct endpoint_info *ep = lookup_endpoint(&pkt.daddr, family);

		if (ep && !(ep->flags & ENDPOINT_F_HOST)) {
			from.src_label = resolve_source(from.src_label, &pkt, family);
			return deliver_local(ctx, &pkt, ep, from, family);
		}
	}
#endif /* ENABLE_HOST_ROUTING */
	return pass_packet(ctx, trace, TRACE_TO_STACK);
}

#ifdef ENABLE_IPV4
TAIL_PROGRAM(tail_handle_ipv4_from_host, CILIUM_CALL_IPV4_FROM_HOST, PROGRAM_IPV4_FROM_HOST,
	     cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS, host_from_host(ctx, &trace, FAMILY_IPV4))

TAIL_PROGRAM(tail_handle_ipv4_from_netdev, CILIUM_CALL_IPV4_FROM_NETDEV, PROGRAM_IPV4_FROM_NETDEV,
	     cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS, host_from_netdev(ctx, &trace, FAMILY_IPV4))
#endif /* ENABLE_IPV4 */

#ifdef ENABLE_IPV6
TAIL_PROGRAM(tail_handle_ipv6_from_host, CILIUM_CALL_IPV6_FROM_HOST, PROGRAM_IPV6_FROM_HOST,
	     cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS, host_from_host(ctx, &trace, FAMILY_IPV6))

TAIL_PROGRAM(tail_handle_ipv6_from_netdev, CILIUM_CALL_IPV6_FROM_NETDEV, PROGRAM_IPV6_FROM_NETDEV,
	     cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS, host_from_netdev(ctx, &trace, FAMILY_IPV6))
#endif /* ENABLE_IPV6 */

/* The slot for the packet's family, called or missed; everything but IP passes. */
static __always_inline int host_dispatch(struct __ctx_buff *ctx, __u32 src_label, const __u32 slot4 __maybe_unused,
					 const __u32 slot6 __maybe_unused)
{
	__be16 protocol = eth_protocol(ctx);

	clear_cb(ctx);
	cb_store(ctx, CB_SRC_LABEL, src_label);
	switch (protocol) {
#ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		ep_tail_call(ctx, slot6);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV6 */
#ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		ep_tail_call(ctx, slot4);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV4 */
	default:
		return pass_from(ctx, src_label, TRACE_TO_STACK);
	}
}

/* Egress of cilium_host. A miss is counted as a drop, but the packet passes: the host stays reachable. */
__section("from-host")
int cil_from_host(struct __ctx_buff *ctx)
{
	struct trace trace = TRACE_UNTRACKED(0);
	int ret;

	begin_chain(ctx, PROGRAM_FROM_HOST);
	trace.src_label = mark_take_identity(ctx);
	trace_packet(ctx, &trace, TRACE_FROM_HOST);
	ret = host_dispatch(ctx, trace.src_label, CILIUM_CALL_IPV4_FROM_HOST, CILIUM_CALL_IPV6_FROM_HOST);
	return ret < 0 ? drop_packet_verdict(ctx, &trace, ret, METRIC_INGRESS, TC_ACT_OK) : ret;
}

/* VLAN_FILTER of node_config.h: statements that say whether frames of a VLAN pass at a native device. */
static __always_inline bool allow_vlan(__u32 ifindex __maybe_unused, __u32 vlan_id __maybe_unused)
{
	VLAN_FILTER(ifindex, vlan_id)
}

#define VLAN_VID_MASK	0xfff

/*
 * A tagged frame is none of the node's own network, whatever it says inside: the kernel has
 * taken the tag off before this, so that nothing else here would see it. One of VLAN 0 has
 * a priority and no network.
 */
static __always_inline bool is_of_vlan(const struct __ctx_buff *ctx)
{
	return ctx->vlan_present && ctx->vlan_tci & VLAN_VID_MASK;
}

/* What becomes of it: it passes as it is, for the VLAN's own device, or is dropped. */
static __always_inline int filter_vlan(struct __ctx_buff *ctx, const struct trace *trace, enum metric_dir dir)
{
	if (allow_vlan(ctx->ifindex, ctx->vlan_tci & VLAN_VID_MASK))
		return TC_ACT_OK;
	return drop_packet(ctx, trace, DROP_VLAN_FILTERED, dir);
}

/* Ingress of a native device; a miss as above. */
__section("from-netdev")
int cil_from_netdev(struct __ctx_buff *ctx)
{
	const struct trace trace = TRACE_UNTRACKED(WORLD_ID);
	int ret;

	begin_chain(ctx, PROGRAM_FROM_NETDEV);
	if (is_of_vlan(ctx))
		return filter_vlan(ctx, &trace, METRIC_INGRESS);
	trace_packet(ctx, &trace, TRACE_FROM_NETWORK);
	ret = host_dispatch(ctx, WORLD_ID, CILIUM_CALL_IPV4_FROM_NETDEV, CILIUM_CALL_IPV6_FROM_NETDEV);
	return ret < 0 ? drop_packet_verdict(ctx, &trace, ret, METRIC_INGRESS, TC_ACT_OK) : ret;
}

#ifdef ENABLE_HOST_FIREWALL
/* The host's policy for what leaves the node. The mark stays: the stack is not done with it. */
static __always_inline int host_to_netdev(struct __ctx_buff *ctx, struct trace *trace)
{
	__u32 mark = ctx->mark;
	bool by_host = !mark_has_identity(mark) && (mark_is_host(mark) || !ctx->ingress_ifindex);

	if (mark_has_identity(mark))
		trace->src_label = mark_get_identity(mark);
	switch (eth_protocol(ctx)) {
# ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		return host_egress(ctx, trace, by_host, FAMILY_IPV6);
# endif /* ENABLE_IPV6 */
# ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		return host_egress(ctx, trace, by_host, FAMILY_IPV4);
# endif /* ENABLE_IPV4 */
	default:
		return 0;
	}
}
#endif /* ENABLE_HOST_FIREWALL */

/* Egress of a native device. */
__section("to-netdev")
int cil_to_netdev(struct __ctx_buff *ctx)
{
	struct trace trace = TRACE_UNTRACKED(0);

	begin_chain(ctx, PROGRAM_TO_NETDEV);
	if (is_of_vlan(ctx))
		return filter_vlan(ctx, &trace, METRIC_EGRESS);
#ifdef ENABLE_HOST_FIREWALL
	{
		int ret = host_to_netdev(ctx, &trace);

		if (ret)
			return drop_packet(ctx, &trace, ret, METRIC_EGRESS);
	}
#endif /* ENABLE_HOST_FIREWALL */
	return pass_packet(ctx, &trace, TRACE_TO_NETWORK);
}

#ifdef ENABLE_HOST_FIREWALL
# ifdef ENABLE_IPV4
TAIL_PROGRAM(tail_ipv4_host_policy_ingress, CILIUM_CALL_IPV4_TO_HOST_POLICY_ONLY, PROGRAM_IPV4_TO_HOST_POLICY,
	     0, METRIC_INGRESS, host_ingress(ctx, &trace, FAMILY_IPV4))
# endif /* ENABLE_IPV4 */

# ifdef ENABLE_IPV6
TAIL_PROGRAM(tail_ipv6_host_policy_ingress, CILIUM_CALL_IPV6_TO_HOST_POLICY_ONLY, PROGRAM_IPV6_TO_HOST_POLICY,
	     0, METRIC_INGRESS, host_ingress(ctx, &trace, FAMILY_IPV6))
# endif /* ENABLE_IPV6 */
#endif /* ENABLE_HOST_FIREWALL */

/* Ingress of cilium_host and of cilium_net: what reaches the host's own stack. With a policy, a miss is a drop. */
__section("to-host")
int cil_to_host(struct __ctx_buff *ctx)
{
	begin_chain(ctx, PROGRAM_TO_HOST);
#ifdef ENABLE_HOST_FIREWALL
	{
		int ret = host_dispatch(ctx, 0, CILIUM_CALL_IPV4_TO_HOST_POLICY_ONLY,
					CILIUM_CALL_IPV6_TO_HOST_POLICY_ONLY);

		return ret < 0 ? drop_from(ctx, 0, ret, METRIC_INGRESS) : ret;
	}
#else
	return pass_from(ctx, 0, TRACE_TO_STACK);
#endif /* ENABLE_HOST_FIREWALL */
}

#ifdef ENABLE_HOST_FIREWALL
/*
 * The host's policy program, in POLICY_CALL_MAP at the host endpoint's id. The programs
 * of a pod call it: for what the pod sends to the host, and, with endpoint routes, for
 * what the host sends to the pod, which goes on to the pod's policy program.
 */
static __always_inline int host_lxc_family(struct __ctx_buff *ctx, struct trace *trace, const enum family family)
{
	__u32 endpoint_id = cb_load(ctx, CB_DST_ENDPOINT_ID);
	int ret;

	if (!cb_load(ctx, CB_FROM_HOST))
		return host_ingress(ctx, trace, family);
	ret = host_egress(ctx, trace, true, family);
	if (ret)
		return ret;
	cb_store(ctx, CB_SRC_LABEL, HOST_ID);
	cb_store(ctx, CB_IFINDEX, 0);	/* the packet is at the pod's device */
	policy_tail_call(ctx, endpoint_id);
	return DROP_MISSED_TAIL_CALL;
}

static __always_inline int host_lxc_traffic(struct __ctx_buff *ctx, struct trace *trace)
{
	switch (eth_protocol(ctx)) {
# ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		return host_lxc_family(ctx, trace, FAMILY_IPV6);
# endif /* ENABLE_IPV6 */
# ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		return host_lxc_family(ctx, trace, FAMILY_IPV4);
# endif /* ENABLE_IPV4 */
	default:
		return DROP_UNKNOWN_L3;
	}
}

__section_tail(CILIUM_MAP_POLICY, TEMPLATE_HOST_EP_ID)
int handle_lxc_traffic(struct __ctx_buff *ctx)
{
	enum metric_dir dir = cb_load(ctx, CB_FROM_HOST) ? METRIC_EGRESS : METRIC_INGRESS;
	struct trace trace = TRACE_UNTRACKED(0);
	int ret;

	begin_chain(ctx, PROGRAM_HANDLE_LXC_TRAFFIC);
	ret = host_lxc_traffic(ctx, &trace);
	return ret < 0 ? drop_packet(ctx, &trace, ret, dir) : ret;
}
#endif /* ENABLE_HOST_FIREWALL */

char ____license[] __section("license") = "Dual BSD/GPL";

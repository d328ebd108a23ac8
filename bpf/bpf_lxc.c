/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Programs of a pod, on the host side of its veth: what the pod sends (ingress) and,
 * with endpoint routes, what it gets (egress). Local senders reach a pod through its
 * policy program.
 */
#include <ep_config.h>
#include <node_config.h>

#define HITS_SOURCE LXC_ID
#define EVENT_SOURCE LXC_ID

#include "lib/arp.h"
#include "lib/buffer.h"
#include "lib/delivery.h"
#include "lib/encap.h"
#include "lib/enforce.h"
#include "lib/icmp6.h"
#include "lib/ipcache.h"
#include "lib/program.h"

/* The stack takes only what is addressed to the device; the pod may have an old neighbour entry. */
static __always_inline int lxc_address_stack(struct __ctx_buff *ctx __maybe_unused,
					     const struct packet *pkt __maybe_unused,
					     const enum family family __maybe_unused)
{
#ifdef ENABLE_ROUTING
	union macaddr router = NODE_MAC;

	if (!ip_stays_on_link(pkt, family)) {
		/* The kernel has judged by the old MAC. */
		if (ctx->pkt_type == PACKET_OTHERHOST)
			skb_change_type(ctx, PACKET_HOST);
		return eth_store_dest(ctx, router.addr);
	}
#endif /* ENABLE_ROUTING */
	return 0;
}

/* To the host's stack, which routes; whoever gets it reads the identity from the mark. */
static __always_inline int lxc_to_stack(struct __ctx_buff *ctx, const struct packet *pkt, const struct trace *trace,
					const enum family family)
{
	int ret = lxc_address_stack(ctx, pkt, family);

	if (ret)
		return ret;
	mark_set_identity(ctx, SECLABEL);
	return pass_packet(ctx, trace, TRACE_TO_STACK);
}

#if defined(ENABLE_ROUTING) || defined(ENABLE_HOST_FIREWALL)
/* To the host itself: by the host's policy program, if it has one. */
static __always_inline int lxc_to_host(struct __ctx_buff *ctx, const struct packet *pkt,
				       const struct trace *trace __maybe_unused, const enum family family)
{
#ifdef ENABLE_HOST_FIREWALL
	int ret = lxc_address_stack(ctx, pkt, family);

	if (ret)
		return ret;
	mark_set_identity(ctx, SECLABEL);
	cb_store(ctx, CB_FROM_HOST, 0);
	policy_tail_call(ctx, HOST_EP_ID);
	return DROP_MISSED_TAIL_CALL;
#else
	return lxc_to_stack(ctx, pkt, trace, family);
#endif /* ENABLE_HOST_FIREWALL */
}
#endif /* ENABLE_ROUTING || ENABLE_HOST_FIREWALL */

/* Where a packet of the pod goes: a pod here, the host, a pod behind the tunnel, the stack. */
static __always_inline int lxc_forward(struct __ctx_buff *ctx, const struct packet *pkt, const struct trace *trace,
				       const enum family family)
{
#if defined(ENABLE_ROUTING) || defined(ENABLE_HOST_FIREWALL)
	{
		struct endpoint_info *ep = lookup_endpoint(&pkt->daddr, family);

		if (ep && ep->flags & ENDPOINT_F_HOST)
			return lxc_to_host(ctx, pkt, trace, family);
# ifdef ENABLE_ROUTING
		if (ep) {
			const struct delivery from = { .src_label = SECLABEL, .dir = METRIC_EGRESS };

			return deliver_local(ctx, pkt, ep, from, family);
		}
# endif /* ENABLE_ROUTING */
	}
#endif /* ENABLE_ROUTING || ENABLE_HOST_FIREWALL */
#ifdef USE_TUNNEL
	if (!encap_is_too_big(ctx, pkt)) {
		struct remote_endpoint_info *info = lookup_ipcache(&pkt->daddr, family);
		int ret = encap_and_redirect(ctx, pkt, info ? info->tunnel_endpoint : 0, trace, family);

		if (ret != DROP_NO_TUNNEL_ENDPOINT)
			return ret;
	}
#endif /* USE_TUNNEL */
	return lxc_to_stack(ctx, pkt, trace, family);
}

/* Neighbour discovery with the host, which no policy concerns. */
static __always_inline bool lxc_is_discovery(const struct packet *pkt, const enum family family)
{
	struct endpoint_info *ep;

	if (!icmp6_is_discovery(pkt, family))
		return false;
	ep = lookup_endpoint(&pkt->daddr, family);
	return ip_stays_on_link(pkt, family) || (ep && ep->flags & ENDPOINT_F_HOST);
}

/* Second step of what a pod sends: the connection. */
static __always_inline int lxc_ct_egress(struct __ctx_buff *ctx, const __u32 next, const enum family family)
{
	struct packet *pkt = buffer_get(family);
	int ret;

	if (!pkt)
		return DROP_INVALID_TC_BUFFER;
	ret = ct_lookup(ctx, pkt, CT_EGRESS, family);
	if (ret)
		return ret;
	ep_tail_call(ctx, next);
	return DROP_MISSED_TAIL_CALL;
}

/* Third step: the policy, and on its way. Who is at the other end is asked only where it matters. */
static __always_inline int lxc_egress(struct __ctx_buff *ctx, struct trace *trace, const enum family family)
{
	struct packet *pkt = buffer_get(family);
	int ret;

	if (!pkt)
		return DROP_INVALID_TC_BUFFER;
	trace->reason = pkt->ct;
	if (lxc_is_discovery(pkt, family))
		return lxc_to_stack(ctx, pkt, trace, family);
	if (pkt->ct == CT_NEW || pkt->ct == CT_REOPENED || pkt->monitor)
		trace->dst_label = lookup_identity(&pkt->daddr, family);
	ret = enforce(ctx, pkt, trace, false, CT_EGRESS, family);
	trace->monitor = pkt->monitor;
	return ret ? ret : lxc_forward(ctx, pkt, trace, family);
}

#ifdef ENABLE_IPV4
static __always_inline int lxc_from_container_ipv4(struct __ctx_buff *ctx)
{
	struct packet *pkt = buffer_new(FAMILY_IPV4);
	int ret;

	if (!pkt)
		return DROP_INVALID_TC_BUFFER;
	ret = ip_parse(ctx, pkt, FAMILY_IPV4);
	if (ret)
		return ret;
	if (pkt->saddr.ip4 != LXC_IPV4)
		return DROP_INVALID_SIP;
	ep_tail_call(ctx, CILIUM_CALL_IPV4_CT_EGRESS);
	return DROP_MISSED_TAIL_CALL;
}

TAIL_PROGRAM(tail_handle_ipv4, CILIUM_CALL_IPV4_FROM_LXC, PROGRAM_IPV4_FROM_LXC,
	     SECLABEL, METRIC_EGRESS, lxc_from_container_ipv4(ctx))

TAIL_PROGRAM(tail_ipv4_ct_egress, CILIUM_CALL_IPV4_CT_EGRESS, PROGRAM_IPV4_CT_EGRESS,
	     SECLABEL, METRIC_EGRESS, lxc_ct_egress(ctx, CILIUM_CALL_IPV4_FROM_LXC_CONT, FAMILY_IPV4))

TAIL_PROGRAM(tail_handle_ipv4_cont, CILIUM_CALL_IPV4_FROM_LXC_CONT, PROGRAM_IPV4_FROM_LXC_CONT,
	     SECLABEL, METRIC_EGRESS, lxc_egress(ctx, &trace, FAMILY_IPV4))

/* Answer for every address but the pod's own, which it may probe for duplicates. */
static __always_inline int lxc_answer_arp(struct __ctx_buff *ctx, const struct trace *trace)
{
	union macaddr mac = NODE_MAC;
	struct arp_frame frame;
	int ret;

	if (!arp_load_request(ctx, &frame, &mac) || frame.addrs.tip == LXC_IPV4)
		return pass_packet(ctx, trace, TRACE_TO_STACK);
	ret = arp_reply(ctx, &frame, &mac);
	return ret ? ret : redirect_to_lxc(ctx, trace, ctx->ifindex);
}

TAIL_PROGRAM(tail_handle_arp, CILIUM_CALL_ARP, PROGRAM_LXC_ARP,
	     SECLABEL, METRIC_EGRESS, lxc_answer_arp(ctx, &trace))
#endif /* ENABLE_IPV4 */

#ifdef ENABLE_IPV6
static __always_inline int lxc_from_container_ipv6(struct __ctx_buff *ctx)
{
	const union ipaddr own = { .ip6 = { fetch_ipv6(LXC_IP) } };
	struct packet *pkt = buffer_new(FAMILY_IPV6);
	int type, ret;

	if (!pkt)
		return DROP_INVALID_TC_BUFFER;
	ret = ip_parse(ctx, pkt, FAMILY_IPV6);
	if (ret)
		return ret;
	type = icmp6_type(ctx, pkt);
	/* A solicitation from nowhere is a probe for duplicates (RFC 4862, 5.4): not ours to answer. */
	if (icmp6_is_solicitation(pkt, type) && !ipv6_is_unspecified(&pkt->saddr)) {
		ep_tail_call(ctx, CILIUM_CALL_HANDLE_ICMP6_NS);
		return DROP_MISSED_TAIL_CALL;
	}
	if (ip_equal(&pkt->saddr, &own)) {
		ep_tail_call(ctx, CILIUM_CALL_IPV6_CT_EGRESS);
		return DROP_MISSED_TAIL_CALL;
	}
	if (icmp6_is_link_housekeeping(pkt, type))
		return pass_from(ctx, SECLABEL, TRACE_TO_STACK);
	return DROP_INVALID_SIP;
}

TAIL_PROGRAM(tail_handle_ipv6, CILIUM_CALL_IPV6_FROM_LXC, PROGRAM_IPV6_FROM_LXC,
	     SECLABEL, METRIC_EGRESS, lxc_from_container_ipv6(ctx))

TAIL_PROGRAM(tail_ipv6_ct_egress, CILIUM_CALL_IPV6_CT_EGRESS, PROGRAM_IPV6_CT_EGRESS,
	     SECLABEL, METRIC_EGRESS, lxc_ct_egress(ctx, CILIUM_CALL_IPV6_FROM_LXC_CONT, FAMILY_IPV6))

TAIL_PROGRAM(tail_handle_ipv6_cont, CILIUM_CALL_IPV6_FROM_LXC_CONT, PROGRAM_IPV6_FROM_LXC_CONT,
	     SECLABEL, METRIC_EGRESS, lxc_egress(ctx, &trace, FAMILY_IPV6))

/* As for ARP: answer for every address but the pod's own. */
static __always_inline int lxc_answer_solicitation(struct __ctx_buff *ctx, const struct trace *trace)
{
	const union ipaddr own = { .ip6 = { fetch_ipv6(LXC_IP) } };
	union macaddr mac = NODE_MAC;
	struct ipv6hdr ip;
	struct nd_msg msg;
	int ret = nd_load_solicitation(ctx, &ip, &msg);

	if (ret)
		return ret;
	if (ip_equal((const union ipaddr *)msg.target, &own))
		return pass_packet(ctx, trace, TRACE_TO_STACK);
	ret = nd_write_advert(ctx, &ip, &msg, &mac);
	return ret ? ret : redirect_to_lxc(ctx, trace, ctx->ifindex);
}

TAIL_PROGRAM(tail_icmp6_handle_ns, CILIUM_CALL_HANDLE_ICMP6_NS, PROGRAM_LXC_ICMP6_NS,
	     SECLABEL, METRIC_EGRESS, lxc_answer_solicitation(ctx, &trace))
#endif /* ENABLE_IPV6 */

/* The slot that handles what a pod sends, called or missed; or the verdict without one. */
static __always_inline int lxc_from_container(struct __ctx_buff *ctx)
{
	switch (eth_protocol(ctx)) {
	case 0:
		return DROP_UNSUPPORTED_L2;
#ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		ep_tail_call(ctx, CILIUM_CALL_IPV6_FROM_LXC);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV6 */
#ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		ep_tail_call(ctx, CILIUM_CALL_IPV4_FROM_LXC);
		return DROP_MISSED_TAIL_CALL;
	case bpf_htons(ETH_P_ARP):
# ifdef ENABLE_ARP_PASSTHROUGH
		return pass_from(ctx, SECLABEL, TRACE_TO_STACK);
# else
		ep_tail_call(ctx, CILIUM_CALL_ARP);
		return DROP_MISSED_TAIL_CALL;
# endif /* ENABLE_ARP_PASSTHROUGH */
#endif /* ENABLE_IPV4 */
	default:
		return DROP_UNKNOWN_L3;
	}
}

/* Ingress of the host side of the veth. */
__section("from-container")
int cil_from_container(struct __ctx_buff *ctx)
{
	int ret;

	begin_chain(ctx, PROGRAM_FROM_CONTAINER);
	clear_cb(ctx);
	trace_from(ctx, SECLABEL, TRACE_FROM_LXC);
	ret = lxc_from_container(ctx);
	return ret < 0 ? drop_from(ctx, SECLABEL, ret, METRIC_EGRESS) : ret;
}

/* First step of what goes into the pod: the connection. */
static __always_inline int lxc_ct_ingress(struct __ctx_buff *ctx, const __u32 next, const enum family family)
{
	struct packet *pkt = buffer_new(family);
	int ret;

	if (!pkt)
		return DROP_INVALID_TC_BUFFER;
	ret = ip_parse(ctx, pkt, family);
	if (!ret)
		ret = ct_lookup(ctx, pkt, CT_INGRESS, family);
	if (ret)
		return ret;
	ep_tail_call(ctx, next);
	return DROP_MISSED_TAIL_CALL;
}

/* Second step: the policy. `by_stack`: the source may be known by its address only. */
static __always_inline int lxc_ingress(struct __ctx_buff *ctx, struct trace *trace, const bool by_stack,
				       const enum family family)
{
	struct packet *pkt = buffer_get(family);
	int ret;

	trace->src_label = cb_load(ctx, CB_SRC_LABEL);
	trace->dst_label = SECLABEL;
	trace->dst_id = LXC_ID;
	if (!pkt)
		return DROP_INVALID_TC_BUFFER;
	if (by_stack)
		trace->src_label = resolve_source(trace->src_label, pkt, family);
	trace->reason = pkt->ct;
	ret = enforce(ctx, pkt, trace, cb_load(ctx, CB_FROM_TUNNEL), CT_INGRESS, family);
	trace->monitor = pkt->monitor;
	return ret;
}

/*
 * For local senders: through the policy, and into the pod, if the packet is not at its device already. While the node
 * is being switched over, the device may still have (or have already) an egress program: it asks again, and must not
 * take the packet for somebody else's.
 */
static __always_inline int lxc_policy(struct __ctx_buff *ctx, struct trace *trace, const enum family family)
{
	__u32 ifindex = cb_load(ctx, CB_IFINDEX);
	int ret = lxc_ingress(ctx, trace, false, family);

	if (ret)
		return ret;
	clear_cb(ctx);
	if (!ifindex)
		return pass_packet(ctx, trace, TRACE_TO_LXC);
	mark_set_identity(ctx, trace->src_label);
	return redirect_to_lxc(ctx, trace, ifindex);
}

/* For what the stack sends into the pod, through the egress program. */
static __always_inline int lxc_to_endpoint(struct __ctx_buff *ctx, struct trace *trace, const enum family family)
{
	int ret = lxc_ingress(ctx, trace, true, family);

	return ret ? ret : pass_packet(ctx, trace, TRACE_TO_LXC);
}

#ifdef ENABLE_IPV4
TAIL_PROGRAM(tail_ipv4_ct_ingress_policy_only, CILIUM_CALL_IPV4_CT_INGRESS_POLICY_ONLY,
	     PROGRAM_IPV4_CT_INGRESS_POLICY_ONLY, cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS,
	     lxc_ct_ingress(ctx, CILIUM_CALL_IPV4_TO_LXC_POLICY_ONLY, FAMILY_IPV4))

TAIL_PROGRAM(tail_ipv4_policy, CILIUM_CALL_IPV4_TO_LXC_POLICY_ONLY, PROGRAM_IPV4_POLICY,
	     0, METRIC_INGRESS, lxc_policy(ctx, &trace, FAMILY_IPV4))

TAIL_PROGRAM(tail_ipv4_ct_ingress, CILIUM_CALL_IPV4_CT_INGRESS, PROGRAM_IPV4_CT_INGRESS,
	     cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS, lxc_ct_ingress(ctx, CILIUM_CALL_IPV4_TO_ENDPOINT, FAMILY_IPV4))

TAIL_PROGRAM(tail_ipv4_to_endpoint, CILIUM_CALL_IPV4_TO_ENDPOINT, PROGRAM_IPV4_TO_ENDPOINT,
	     0, METRIC_INGRESS, lxc_to_endpoint(ctx, &trace, FAMILY_IPV4))
#endif /* ENABLE_IPV4 */

#ifdef ENABLE_IPV6
TAIL_PROGRAM(tail_ipv6_ct_ingress_policy_only, CILIUM_CALL_IPV6_CT_INGRESS_POLICY_ONLY,
	     PROGRAM_IPV6_CT_INGRESS_POLICY_ONLY, cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS,
	     lxc_ct_ingress(ctx, CILIUM_CALL_IPV6_TO_LXC_POLICY_ONLY, FAMILY_IPV6))

TAIL_PROGRAM(tail_ipv6_policy, CILIUM_CALL_IPV6_TO_LXC_POLICY_ONLY, PROGRAM_IPV6_POLICY,
	     0, METRIC_INGRESS, lxc_policy(ctx, &trace, FAMILY_IPV6))

TAIL_PROGRAM(tail_ipv6_ct_ingress, CILIUM_CALL_IPV6_CT_INGRESS, PROGRAM_IPV6_CT_INGRESS,
	     cb_load(ctx, CB_SRC_LABEL), METRIC_INGRESS, lxc_ct_ingress(ctx, CILIUM_CALL_IPV6_TO_ENDPOINT, FAMILY_IPV6))

TAIL_PROGRAM(tail_ipv6_to_endpoint, CILIUM_CALL_IPV6_TO_ENDPOINT, PROGRAM_IPV6_TO_ENDPOINT,
	     0, METRIC_INGRESS, lxc_to_endpoint(ctx, &trace, FAMILY_IPV6))
#endif /* ENABLE_IPV6 */

/*
 * With endpoint routes the egress program of the device enforces the policy: senders
 * that still call this one while the node is being switched over only pass the identity
 * on. Who calls it for a packet at the device (ifindex 0) wants the policy.
 */
static __always_inline int lxc_handle_policy(struct __ctx_buff *ctx)
{
#ifdef USE_BPF_PROG_FOR_INGRESS_POLICY
	__u32 ifindex = cb_load(ctx, CB_IFINDEX);

	if (ifindex) {
		mark_set_identity(ctx, cb_load(ctx, CB_SRC_LABEL));
		clear_cb(ctx);
		return redirect((int)ifindex, 0);
	}
#endif /* USE_BPF_PROG_FOR_INGRESS_POLICY */
	switch (eth_protocol(ctx)) {
	case 0:
		return DROP_UNSUPPORTED_L2;
#ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		ep_tail_call(ctx, CILIUM_CALL_IPV6_CT_INGRESS_POLICY_ONLY);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV6 */
#ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		ep_tail_call(ctx, CILIUM_CALL_IPV4_CT_INGRESS_POLICY_ONLY);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV4 */
	default:
		return DROP_UNKNOWN_L3;
	}
}

/* In POLICY_CALL_MAP at the endpoint's id: local senders call it, with the cb words set. */
__section_tail(CILIUM_MAP_POLICY, TEMPLATE_LXC_ID)
int handle_policy(struct __ctx_buff *ctx)
{
	int ret;

	begin_chain(ctx, PROGRAM_HANDLE_POLICY);
	ret = lxc_handle_policy(ctx);
	return ret < 0 ? drop_from(ctx, cb_load(ctx, CB_SRC_LABEL), ret, METRIC_INGRESS) : ret;
}

static __always_inline int lxc_to_container(struct __ctx_buff *ctx)
{
	__be16 protocol = eth_protocol(ctx);
#ifdef ENABLE_HOST_FIREWALL
	bool by_host_itself = !mark_has_identity(ctx->mark);
#endif /* ENABLE_HOST_FIREWALL */
	__u32 src_label = mark_take_identity(ctx);

	clear_cb(ctx);
	cb_store(ctx, CB_SRC_LABEL, src_label);
#ifdef ENABLE_HOST_FIREWALL
	/* The host's policy first, whose program then calls this pod's. */
	if (by_host_itself && src_label == HOST_ID &&
	    (protocol == bpf_htons(ETH_P_IP) || protocol == bpf_htons(ETH_P_IPV6))) {
		cb_store(ctx, CB_DST_ENDPOINT_ID, LXC_ID);
		cb_store(ctx, CB_FROM_HOST, 1);
		policy_tail_call(ctx, HOST_EP_ID);
		return DROP_MISSED_TAIL_CALL;
	}
#endif /* ENABLE_HOST_FIREWALL */
	switch (protocol) {
	case 0:
		return DROP_UNSUPPORTED_L2;
	case bpf_htons(ETH_P_ARP):
		return pass_from(ctx, 0, TRACE_TO_LXC);
#ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		ep_tail_call(ctx, CILIUM_CALL_IPV6_CT_INGRESS);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV6 */
#ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		ep_tail_call(ctx, CILIUM_CALL_IPV4_CT_INGRESS);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV4 */
	default:
		return DROP_UNKNOWN_L3;
	}
}

/* Egress of the host side of the veth, with endpoint routes only. */
__section("to-container")
int cil_to_container(struct __ctx_buff *ctx)
{
	int ret;

	begin_chain(ctx, PROGRAM_TO_CONTAINER);
	trace_from(ctx, 0, TRACE_FROM_STACK);
	ret = lxc_to_container(ctx);
	return ret < 0 ? drop_from(ctx, cb_load(ctx, CB_SRC_LABEL), ret, METRIC_INGRESS) : ret;
}

char ____license[] __section("license") = "Dual BSD/GPL";

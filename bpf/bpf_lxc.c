/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Programs of a pod, on the host side of its veth: what the pod sends (ingress) and,
 * with endpoint routes, what it gets (egress). Local senders reach a pod through its
 * policy program.
 */
#include <ep_config.h>
#include <node_config.h>

#define HITS_SOURCE LXC_ID

#include "lib/arp.h"
#include "lib/delivery.h"
#include "lib/encap.h"
#include "lib/hits.h"
#include "lib/icmp6.h"
#include "lib/ipcache.h"
#include "lib/policy.h"

/* To the host's stack, which routes; whoever gets it reads the identity from the mark. */
static __always_inline int lxc_to_stack(struct __ctx_buff *ctx, const struct packet *pkt __maybe_unused,
					const enum family family __maybe_unused)
{
#ifdef ENABLE_ROUTING
	if (!ip_stays_on_link(pkt, family)) {
		union macaddr router = NODE_MAC;
		int ret = eth_store_dest(ctx, router.addr);

		if (ret)
			return ret;
	}
#endif /* ENABLE_ROUTING */
	mark_set_identity(ctx, SECLABEL);
	return pass_packet(ctx, TRACE_TO_STACK);
}

/* Where a packet of the pod goes: a pod here, the host, a pod behind the tunnel, the stack. */
static __always_inline int lxc_forward(struct __ctx_buff *ctx, const struct packet *pkt, const enum family family)
{
#ifdef ENABLE_ROUTING
	{
		struct endpoint_info *ep = lookup_endpoint(&pkt->daddr, family);

		if (ep && ep->flags & ENDPOINT_F_HOST)
			return lxc_to_stack(ctx, pkt, family);
		if (ep) {
			const struct delivery from = { .src_label = SECLABEL, .dir = METRIC_EGRESS };

			return deliver_local(ctx, pkt, ep, from, family);
		}
	}
#endif /* ENABLE_ROUTING */
#ifdef USE_TUNNEL
	{
		struct remote_endpoint_info *info = lookup_ipcache(&pkt->daddr, family);
		int ret = encap_and_redirect(ctx, pkt, info ? info->tunnel_endpoint : 0, SECLABEL, family);

		if (ret != DROP_NO_TUNNEL_ENDPOINT)
			return ret;
	}
#endif /* USE_TUNNEL */
	return lxc_to_stack(ctx, pkt, family);
}

#ifdef ENABLE_IPV4
static __always_inline int lxc_from_container_ipv4(struct __ctx_buff *ctx)
{
	struct packet pkt = {};
	int ret = ip_parse(ctx, &pkt, FAMILY_IPV4);

	if (ret)
		return ret;
	if (pkt.saddr.ip4 != LXC_IPV4)
		return DROP_INVALID_SIP;
	return lxc_forward(ctx, &pkt, FAMILY_IPV4);
}

__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_IPV4_FROM_LXC)
int tail_handle_ipv4(struct __ctx_buff *ctx)
{
	int ret;

	count_hit(PROGRAM_IPV4_FROM_LXC);
	ret = lxc_from_container_ipv4(ctx);
	return ret < 0 ? drop_packet(ctx, SECLABEL, ret, METRIC_EGRESS) : ret;
}

/* Answer for every address but the pod's own, which it may probe for duplicates. */
static __always_inline int lxc_answer_arp(struct __ctx_buff *ctx)
{
	union macaddr mac = NODE_MAC;
	struct arp_frame frame;
	int ret;

	if (!arp_load_request(ctx, &frame, &mac) || frame.addrs.tip == LXC_IPV4)
		return pass_packet(ctx, TRACE_TO_STACK);
	ret = arp_reply(ctx, &frame, &mac);
	return ret ? ret : redirect_to_lxc(ctx, ctx->ifindex);
}

__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_ARP)
int tail_handle_arp(struct __ctx_buff *ctx)
{
	int ret;

	count_hit(PROGRAM_LXC_ARP);
	ret = lxc_answer_arp(ctx);
	return ret < 0 ? drop_packet(ctx, SECLABEL, ret, METRIC_EGRESS) : ret;
}
#endif /* ENABLE_IPV4 */

#ifdef ENABLE_IPV6
static __always_inline int lxc_from_container_ipv6(struct __ctx_buff *ctx)
{
	const union ipaddr own = { .ip6 = { fetch_ipv6(LXC_IP) } };
	struct packet pkt = {};
	int type, ret = ip_parse(ctx, &pkt, FAMILY_IPV6);

	if (ret)
		return ret;
	type = icmp6_type(ctx, &pkt);
	/* A solicitation from nowhere is a probe for duplicates (RFC 4862, 5.4): not ours to answer. */
	if (icmp6_is_solicitation(&pkt, type) && !ipv6_is_unspecified(&pkt.saddr)) {
		ep_tail_call(ctx, CILIUM_CALL_HANDLE_ICMP6_NS);
		return DROP_MISSED_TAIL_CALL;
	}
	if (ip_equal(&pkt.saddr, &own))
		return lxc_forward(ctx, &pkt, FAMILY_IPV6);
	if (icmp6_is_link_housekeeping(&pkt, type))
		return pass_packet(ctx, TRACE_TO_STACK);
	return DROP_INVALID_SIP;
}

__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_IPV6_FROM_LXC)
int tail_handle_ipv6(struct __ctx_buff *ctx)
{
	int ret;

	count_hit(PROGRAM_IPV6_FROM_LXC);
	ret = lxc_from_container_ipv6(ctx);
	return ret < 0 ? drop_packet(ctx, SECLABEL, ret, METRIC_EGRESS) : ret;
}

/* As for ARP: answer for every address but the pod's own. */
static __always_inline int lxc_answer_solicitation(struct __ctx_buff *ctx)
{
	const union ipaddr own = { .ip6 = { fetch_ipv6(LXC_IP) } };
	union macaddr mac = NODE_MAC;
	struct ipv6hdr ip;
	struct nd_msg msg;
	int ret = nd_load_solicitation(ctx, &ip, &msg);

	if (ret)
		return ret;
	if (ip_equal((const union ipaddr *)msg.target, &own))
		return pass_packet(ctx, TRACE_TO_STACK);
	ret = nd_write_advert(ctx, &ip, &msg, &mac);
	return ret ? ret : redirect_to_lxc(ctx, ctx->ifindex);
}

__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_HANDLE_ICMP6_NS)
int tail_icmp6_handle_ns(struct __ctx_buff *ctx)
{
	int ret;

	count_hit(PROGRAM_LXC_ICMP6_NS);
	ret = lxc_answer_solicitation(ctx);
	return ret < 0 ? drop_packet(ctx, SECLABEL, ret, METRIC_EGRESS) : ret;
}
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
		return pass_packet(ctx, TRACE_TO_STACK);
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

	count_hit(PROGRAM_FROM_CONTAINER);
	clear_cb(ctx);
	trace_packet(ctx, TRACE_FROM_LXC);
	ret = lxc_from_container(ctx);
	return ret < 0 ? drop_packet(ctx, SECLABEL, ret, METRIC_EGRESS) : ret;
}

/*
 * Policy for what a local sender delivers, then into the pod. With endpoint routes the
 * egress program of the device does that: this one, which senders still call while the
 * node is being switched over, only passes the identity on.
 */
static __always_inline int lxc_policy(struct __ctx_buff *ctx)
{
	__u32 src_label = cb_load(ctx, CB_SRC_LABEL);
	__u32 ifindex = cb_load(ctx, CB_IFINDEX);

	clear_cb(ctx);
#ifdef USE_BPF_PROG_FOR_INGRESS_POLICY
	mark_set_identity(ctx, src_label);
	return redirect((int)ifindex, 0);
#else
	{
		int ret = policy_can_ingress(ctx, src_label);

		return ret ? ret : redirect_to_lxc(ctx, ifindex);
	}
#endif /* USE_BPF_PROG_FOR_INGRESS_POLICY */
}

/* Policy for what the stack sends into the pod, through the egress program. */
static __always_inline int lxc_to_endpoint(struct __ctx_buff *ctx, const enum family family)
{
	__u32 src_label = cb_load(ctx, CB_SRC_LABEL);
	struct packet pkt = {};
	int ret = ip_parse(ctx, &pkt, family);

	if (!ret)
		ret = policy_can_ingress(ctx, resolve_source(src_label, &pkt, family));
	return ret ? ret : pass_packet(ctx, TRACE_TO_LXC);
}

#ifdef ENABLE_IPV4
__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_IPV4_TO_LXC_POLICY_ONLY)
int tail_ipv4_policy(struct __ctx_buff *ctx)
{
	__u32 src_label = cb_load(ctx, CB_SRC_LABEL);
	int ret;

	count_hit(PROGRAM_IPV4_POLICY);
	ret = lxc_policy(ctx);
	return ret < 0 ? drop_packet(ctx, src_label, ret, METRIC_INGRESS) : ret;
}

__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_IPV4_TO_ENDPOINT)
int tail_ipv4_to_endpoint(struct __ctx_buff *ctx)
{
	__u32 src_label = cb_load(ctx, CB_SRC_LABEL);
	int ret;

	count_hit(PROGRAM_IPV4_TO_ENDPOINT);
	ret = lxc_to_endpoint(ctx, FAMILY_IPV4);
	return ret < 0 ? drop_packet(ctx, src_label, ret, METRIC_INGRESS) : ret;
}
#endif /* ENABLE_IPV4 */

#ifdef ENABLE_IPV6
__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_IPV6_TO_LXC_POLICY_ONLY)
int tail_ipv6_policy(struct __ctx_buff *ctx)
{
	__u32 src_label = cb_load(ctx, CB_SRC_LABEL);
	int ret;

	count_hit(PROGRAM_IPV6_POLICY);
	ret = lxc_policy(ctx);
	return ret < 0 ? drop_packet(ctx, src_label, ret, METRIC_INGRESS) : ret;
}

__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_IPV6_TO_ENDPOINT)
int tail_ipv6_to_endpoint(struct __ctx_buff *ctx)
{
	__u32 src_label = cb_load(ctx, CB_SRC_LABEL);
	int ret;

	count_hit(PROGRAM_IPV6_TO_ENDPOINT);
	ret = lxc_to_endpoint(ctx, FAMILY_IPV6);
	return ret < 0 ? drop_packet(ctx, src_label, ret, METRIC_INGRESS) : ret;
}
#endif /* ENABLE_IPV6 */

static __always_inline int lxc_handle_policy(struct __ctx_buff *ctx)
{
	switch (eth_protocol(ctx)) {
	case 0:
		return DROP_UNSUPPORTED_L2;
#ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		ep_tail_call(ctx, CILIUM_CALL_IPV6_TO_LXC_POLICY_ONLY);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV6 */
#ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		ep_tail_call(ctx, CILIUM_CALL_IPV4_TO_LXC_POLICY_ONLY);
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

	count_hit(PROGRAM_HANDLE_POLICY);
	ret = lxc_handle_policy(ctx);
	return ret < 0 ? drop_packet(ctx, cb_load(ctx, CB_SRC_LABEL), ret, METRIC_INGRESS) : ret;
}

static __always_inline int lxc_to_container(struct __ctx_buff *ctx)
{
	__be16 protocol = eth_protocol(ctx);

	clear_cb(ctx);
	cb_store(ctx, CB_SRC_LABEL, mark_take_identity(ctx));
	switch (protocol) {
	case 0:
		return DROP_UNSUPPORTED_L2;
	case bpf_htons(ETH_P_ARP):
		return pass_packet(ctx, TRACE_TO_LXC);
#ifdef ENABLE_IPV6
	case bpf_htons(ETH_P_IPV6):
		ep_tail_call(ctx, CILIUM_CALL_IPV6_TO_ENDPOINT);
		return DROP_MISSED_TAIL_CALL;
#endif /* ENABLE_IPV6 */
#ifdef ENABLE_IPV4
	case bpf_htons(ETH_P_IP):
		ep_tail_call(ctx, CILIUM_CALL_IPV4_TO_ENDPOINT);
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

	count_hit(PROGRAM_TO_CONTAINER);
	trace_packet(ctx, TRACE_FROM_STACK);
	ret = lxc_to_container(ctx);
	return ret < 0 ? drop_packet(ctx, cb_load(ctx, CB_SRC_LABEL), ret, METRIC_INGRESS) : ret;
}

char ____license[] __section("license") = "Dual BSD/GPL";

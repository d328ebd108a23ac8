/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_ENCAP_H
#define RELOADLAB_ENCAP_H

#include "identity.h"
#include "ip.h"
#include "trace.h"

struct tunnel_key {
	union ipaddr ip;	/* the part of a pod's address that names its node */
	__u8 family;
	__u8 cluster_id;
	__u16 pad;
#if TUNNEL_KEY_PAD
	__u32 variation[TUNNEL_KEY_PAD];
#endif /* TUNNEL_KEY_PAD */
};

struct tunnel_value {
	union ipaddr ip;	/* the node */
	__u8 family;
	__u8 key;
	__u16 node_id;
#if TUNNEL_VALUE_PAD
	__u32 variation[TUNNEL_VALUE_PAD];
#endif /* TUNNEL_VALUE_PAD */
};

/* The node of every pod network, for pods that ipcache does not know. */
struct {
	__uint(type, TUNNEL_MAP_TYPE);
	__type(key, struct tunnel_key);
	__type(value, struct tunnel_value);
	__uint(max_entries, TUNNEL_ENDPOINT_MAP_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, TUNNEL_MAP_FLAGS);
} TUNNEL_MAP __maps_btf;

#ifdef USE_TUNNEL
static __always_inline __be32 lookup_tunnel_endpoint(const struct packet *pkt, const enum family family)
{
	struct tunnel_key key = { .ip = pkt->daddr, .family = (__u8)family };
	struct tunnel_value *value;

	if (family == FAMILY_IPV6) {
		key.ip.ip6[3] = 0;	/* a pod network is a /96 */
	} else {
#ifdef IPV4_MASK
		key.ip.ip4 &= IPV4_MASK;
#else
		return 0;
#endif /* IPV4_MASK */
	}
	value = map_lookup_elem(&TUNNEL_MAP, &key);
	return value ? value->ip.ip4 : 0;
}

/* Where the length stands in a TCP header: in words, in the upper half. */
#define TCP_DOFF_OFF	12

/* Of TCP or UDP, in bytes: what else there is, is never cut into segments. */
static __always_inline __u32 l4_header_len(const struct __ctx_buff *ctx, const struct packet *pkt)
{
	__u8 doff = 0;

	if (pkt->protocol != IPPROTO_TCP || skb_load_bytes(ctx, pkt->l4_off + TCP_DOFF_OFF, &doff, sizeof(doff)))
		return 8;
	return (doff >> 4) * 4U;
}

/*
 * Does the packet not fit into the tunnel? Then the stack gets it, whose route has the
 * tunnel's MTU: it tells the sender, or makes fragments. Of a packet that stands for
 * several, each has the headers, and gso_size bytes of the payload.
 */
static __always_inline bool encap_is_too_big(const struct __ctx_buff *ctx, const struct packet *pkt)
{
	__u32 len = ctx->len - ETH_HLEN;

	if (ctx->gso_size)
		len = pkt->l4_off - ETH_HLEN + l4_header_len(ctx, pkt) + ctx->gso_size;
	return len > MTU - TUNNEL_OVERHEAD;
}

/*
 * Send the packet through the tunnel, with the identity as its VNI. `endpoint` is what
 * ipcache says, 0 if nothing; DROP_NO_TUNNEL_ENDPOINT tells the caller to go on.
 */
static __always_inline int encap_and_redirect(struct __ctx_buff *ctx, const struct packet *pkt, __be32 endpoint,
					      const struct trace *trace, const enum family family)
{
	struct bpf_tunnel_key key = {};

	if (!endpoint)
		endpoint = lookup_tunnel_endpoint(pkt, family);
	if (!endpoint)
		return DROP_NO_TUNNEL_ENDPOINT;
	/* To another node, this host is a remote node. */
	key.tunnel_id = trace->src_label == HOST_ID ? REMOTE_NODE_ID : identity_to_carry(trace->src_label);
	key.remote_ipv4 = bpf_ntohl(endpoint);
	if (skb_set_tunnel_key(ctx, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return DROP_WRITE_ERROR;
	trace_packet(ctx, trace, TRACE_TO_OVERLAY);
	return redirect(ENCAP_IFINDEX, 0);
}
#endif /* USE_TUNNEL */

#endif /* RELOADLAB_ENCAP_H */

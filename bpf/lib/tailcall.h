/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_TAILCALL_H
#define RELOADLAB_TAILCALL_H

#include "common.h"

/* Ids of the program arrays; the section of a tail program is "<id>/<slot>". */
#define CILIUM_MAP_POLICY	1
#define CILIUM_MAP_CALLS	2

#ifdef RENUMBERED_SLOTS
# define SLOT(number, other)	other
#else
# define SLOT(number, other)	number
#endif /* RENUMBERED_SLOTS */

/*
 * Slots of CALLS_MAP. Numbers that are used twice mean the same step in different
 * objects, each of which has an array of its own.
 */
#define CILIUM_CALL_HANDLE_ICMP6_NS		SLOT(4, 6)
#define CILIUM_CALL_ARP				SLOT(6, 4)
#define CILIUM_CALL_IPV4_FROM_LXC		SLOT(7, 10)
#define CILIUM_CALL_IPV4_FROM_NETDEV		CILIUM_CALL_IPV4_FROM_LXC
#define CILIUM_CALL_IPV4_FROM_OVERLAY		CILIUM_CALL_IPV4_FROM_LXC
#define CILIUM_CALL_IPV4_XDP			CILIUM_CALL_IPV4_FROM_LXC
#define CILIUM_CALL_REJECTED			8	/* with REJECTED_BY_VERIFIER; no packet gets there */
#define CILIUM_CALL_IPV6_FROM_LXC		SLOT(10, 7)
#define CILIUM_CALL_IPV6_FROM_NETDEV		CILIUM_CALL_IPV6_FROM_LXC
#define CILIUM_CALL_IPV6_FROM_OVERLAY		CILIUM_CALL_IPV6_FROM_LXC
#define CILIUM_CALL_IPV6_XDP			CILIUM_CALL_IPV6_FROM_LXC
#define CILIUM_CALL_IPV4_TO_LXC_POLICY_ONLY	SLOT(11, 12)
#define CILIUM_CALL_IPV6_TO_LXC_POLICY_ONLY	SLOT(12, 11)
#define CILIUM_CALL_IPV4_TO_HOST_POLICY_ONLY	CILIUM_CALL_IPV4_TO_LXC_POLICY_ONLY
#define CILIUM_CALL_IPV6_TO_HOST_POLICY_ONLY	CILIUM_CALL_IPV6_TO_LXC_POLICY_ONLY
#define CILIUM_CALL_IPV4_TO_ENDPOINT		SLOT(13, 14)
#define CILIUM_CALL_IPV6_TO_ENDPOINT		SLOT(14, 13)
#define CILIUM_CALL_IPV4_FROM_HOST		SLOT(22, 23)
#define CILIUM_CALL_IPV6_FROM_HOST		SLOT(23, 22)
#define CILIUM_CALL_IPV4_FROM_LXC_CONT		SLOT(25, 26)
#define CILIUM_CALL_IPV6_FROM_LXC_CONT		SLOT(26, 25)
#define CILIUM_CALL_IPV4_CT_INGRESS		SLOT(27, 30)
#define CILIUM_CALL_IPV4_CT_INGRESS_POLICY_ONLY	SLOT(28, 31)
#define CILIUM_CALL_IPV4_CT_EGRESS		SLOT(29, 32)
#define CILIUM_CALL_IPV6_CT_INGRESS		SLOT(30, 27)
#define CILIUM_CALL_IPV6_CT_INGRESS_POLICY_ONLY	SLOT(31, 28)
#define CILIUM_CALL_IPV6_CT_EGRESS		SLOT(32, 29)
#define CILIUM_CALL_SIZE			47

/* The slot of the policy program in POLICY_CALL_MAP; the loader puts the endpoint's id here. */
#define TEMPLATE_LXC_ID				0xffff
#define TEMPLATE_HOST_EP_ID			0xffff

#define __section_tail(map_id, slot)	__section(__stringify(map_id) "/" __stringify(slot))

#ifdef FOR_LIBBPF
/* libbpf knows no ids: whoever loads such an object fills the slots by the sections' names. */
# define TAIL_CALL_MAP(name, entries, map_id) \
	struct { \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(key_size, sizeof(__u32)); \
		__uint(value_size, sizeof(__u32)); \
		__uint(max_entries, entries); \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
	} name __maps_btf
#else
# define TAIL_CALL_MAP(name, entries, map_id) \
	struct bpf_elf_map name __maps_legacy = { \
		.type = BPF_MAP_TYPE_PROG_ARRAY, \
		.size_key = sizeof(__u32), \
		.size_value = sizeof(__u32), \
		.max_elem = (entries), \
		.id = (map_id), \
		.pinning = PIN_GLOBAL_NS, \
	}
#endif /* FOR_LIBBPF */

/* This object's own tail programs. */
TAIL_CALL_MAP(CALLS_MAP, CILIUM_CALL_SIZE, CILIUM_MAP_CALLS);

#ifndef CTX_XDP
/*
 * Every endpoint's policy program, at the endpoint's id; shared by all objects of the
 * node, but for that of XDP: an array has programs of one type.
 */
TAIL_CALL_MAP(POLICY_CALL_MAP, POLICY_PROG_MAP_SIZE, CILIUM_MAP_POLICY);
#endif /* CTX_XDP */

/*
 * Both return only if the slot is empty, so a caller goes on with the drop. `slot` of
 * the first is a constant: the kernel then patches the call into a direct jump.
 */
static __always_inline void ep_tail_call(struct __ctx_buff *ctx, const __u32 slot)
{
	tail_call(ctx, &CALLS_MAP, slot);
}

#ifndef CTX_XDP
static __always_inline void policy_tail_call(struct __ctx_buff *ctx, __u32 endpoint_id)
{
	tail_call(ctx, &POLICY_CALL_MAP, endpoint_id);
}
#endif /* CTX_XDP */

/* At the beginning of an entry program: what it can reach is loaded, whatever packets there are. */
static __always_inline void reach_rejected(struct __ctx_buff *ctx __maybe_unused)
{
#ifdef REJECTED_BY_VERIFIER
	if (!ctx_full_len(ctx))
		ep_tail_call(ctx, CILIUM_CALL_REJECTED);
#endif /* REJECTED_BY_VERIFIER */
}

#ifdef REJECTED_BY_VERIFIER
__section_tail(CILIUM_MAP_CALLS, CILIUM_CALL_REJECTED)
int tail_rejected_by_verifier(struct __ctx_buff *ctx)
{
	const __u8 *data = (const __u8 *)(unsigned long)ctx->data;

	return data[ETH_HLEN];
}
#endif /* REJECTED_BY_VERIFIER */

#endif /* RELOADLAB_TAILCALL_H */

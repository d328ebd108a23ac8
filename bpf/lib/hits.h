/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_HITS_H
#define RELOADLAB_HITS_H

#include "common.h"
#include "tailcall.h"

/*
 * Which load of which program handled how many packets. GENERATION is substituted at
 * every load, so after a reload new entries appear beside the old ones, and a test
 * reads from them which build a packet met. The kernel's run counters cannot tell:
 * they leave out programs that are reached by a tail call.
 *
 * These numbers stand in lab/abi/layouts.py too; a test compares them.
 */
enum program_id {
	PROGRAM_FROM_CONTAINER = 1,
	PROGRAM_TO_CONTAINER = 2,
	PROGRAM_HANDLE_POLICY = 3,
	PROGRAM_LXC_ARP = 4,
	PROGRAM_LXC_ICMP6_NS = 5,
	PROGRAM_IPV4_FROM_LXC = 6,
	PROGRAM_IPV6_FROM_LXC = 7,
	PROGRAM_IPV4_POLICY = 8,
	PROGRAM_IPV6_POLICY = 9,
	PROGRAM_IPV4_TO_ENDPOINT = 10,
	PROGRAM_IPV6_TO_ENDPOINT = 11,
	PROGRAM_IPV4_CT_EGRESS = 12,
	PROGRAM_IPV6_CT_EGRESS = 13,
	PROGRAM_IPV4_FROM_LXC_CONT = 14,
	PROGRAM_IPV6_FROM_LXC_CONT = 15,
	PROGRAM_IPV4_CT_INGRESS = 16,
	PROGRAM_IPV6_CT_INGRESS = 17,
	PROGRAM_IPV4_CT_INGRESS_POLICY_ONLY = 18,
	PROGRAM_IPV6_CT_INGRESS_POLICY_ONLY = 19,

	PROGRAM_TO_HOST = 32,
	PROGRAM_FROM_HOST = 33,
	PROGRAM_FROM_NETDEV = 34,
	PROGRAM_TO_NETDEV = 35,
	PROGRAM_IPV4_FROM_HOST = 36,
	PROGRAM_IPV6_FROM_HOST = 37,
	PROGRAM_IPV4_FROM_NETDEV = 38,
	PROGRAM_IPV6_FROM_NETDEV = 39,
	PROGRAM_HANDLE_LXC_TRAFFIC = 40,
	PROGRAM_IPV4_TO_HOST_POLICY = 41,
	PROGRAM_IPV6_TO_HOST_POLICY = 42,

	PROGRAM_FROM_OVERLAY = 64,
	PROGRAM_TO_OVERLAY = 65,
	PROGRAM_IPV4_FROM_OVERLAY = 66,
	PROGRAM_IPV6_FROM_OVERLAY = 67,

	PROGRAM_XDP_ENTRY = 96,
	PROGRAM_IPV4_XDP = 97,
	PROGRAM_IPV6_XDP = 98,
};

/* Added to the number of a program: another load's program called it. */
#define HIT_MIXED_LOADS 0x80

/* Whose program it is: the id of the pod, 0 in the objects of host, overlay and XDP. */
#ifndef HITS_SOURCE
# define HITS_SOURCE 0
#endif /* HITS_SOURCE */

struct hits_key {
	__u32 generation;
	__u16 source;
	__u8 program;		/* enum program_id, and HIT_MIXED_LOADS */
	__u8 pad;
};

/*
 * LRU: after many reloads the oldest generations make room, the newest always fit. Per
 * CPU, because every program of every packet counts here; a reader adds them up.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__type(key, struct hits_key);
	__type(value, __u64);
	__uint(max_entries, HITS_MAP_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} HITS_MAP __maps_btf;

static __always_inline void count_hit(__u8 program)
{
	struct hits_key key = {
		.generation = GENERATION,
		.source = HITS_SOURCE,
		.program = program,
	};
	__u64 one = 1;
	__u64 *packets = map_lookup_elem(&HITS_MAP, &key);

	/* Not atomic: this CPU's copy, and bottom halves are off. */
	if (packets)
		(*packets)++;
	else
		map_update_elem(&HITS_MAP, &key, &one, BPF_ANY);
}

/* The first statement of a program that begins a chain: an entry program, or one in POLICY_CALL_MAP. */
static __always_inline void begin_chain(struct __ctx_buff *ctx, const enum program_id program)
{
	reach_rejected(ctx);
	count_hit((__u8)program);
	cb_store(ctx, CB_GENERATION, GENERATION);
}

/*
 * The first statement of a program in CALLS_MAP. Every load has a calls map of its own, so
 * the chain began with the same load. If it did not, somebody has put the programs of one
 * load into the map of another, and the packet met both.
 */
static __always_inline void continue_chain(const struct __ctx_buff *ctx, const enum program_id program)
{
	count_hit((__u8)program | (cb_load(ctx, CB_GENERATION) == GENERATION ? 0 : HIT_MIXED_LOADS));
}

#endif /* RELOADLAB_HITS_H */

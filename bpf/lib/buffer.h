/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_BUFFER_H
#define RELOADLAB_BUFFER_H

#include "common.h"

/*
 * What the programs of one chain hand to each other about the packet: nothing else runs
 * on a CPU between two tail calls. Not pinned, so that two loads never share one; but
 * tc loads each program by itself, and each would have a buffer of its own.
 */
#ifdef FOR_LIBBPF
# define TAIL_CALL_BUFFER_PINNING	LIBBPF_PIN_BY_NAME
#else
# define TAIL_CALL_BUFFER_PINNING	0
#endif /* FOR_LIBBPF */

#define TAIL_CALL_BUFFER(name) \
	struct { \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
		__type(key, __u32); \
		__type(value, struct packet); \
		__uint(max_entries, 1); \
		__uint(pinning, TAIL_CALL_BUFFER_PINNING); \
	} name __maps_btf

#ifdef ENABLE_IPV4
TAIL_CALL_BUFFER(CT_TAIL_CALL_BUFFER4);
#endif /* ENABLE_IPV4 */
#ifdef ENABLE_IPV6
TAIL_CALL_BUFFER(CT_TAIL_CALL_BUFFER6);
#endif /* ENABLE_IPV6 */

static __always_inline struct packet *buffer_lookup(const enum family family)
{
	__u32 first = 0;

#ifdef ENABLE_IPV4
	if (family == FAMILY_IPV4)
		return map_lookup_elem(&CT_TAIL_CALL_BUFFER4, &first);
#endif /* ENABLE_IPV4 */
#ifdef ENABLE_IPV6
	if (family == FAMILY_IPV6)
		return map_lookup_elem(&CT_TAIL_CALL_BUFFER6, &first);
#endif /* ENABLE_IPV6 */
	return NULL;
}

/* Zeroed, for the first program of the chain. NULL never happens; the verifier does not know. */
static __always_inline struct packet *buffer_new(const enum family family)
{
	struct packet *pkt = buffer_lookup(family);

	if (pkt)
		__builtin_memset(pkt, 0, sizeof(*pkt));
	return pkt;
}

/* For those after it; NULL if there was none. */
static __always_inline struct packet *buffer_get(const enum family family)
{
	struct packet *pkt = buffer_lookup(family);

	return pkt && pkt->family == family ? pkt : NULL;
}

#endif /* RELOADLAB_BUFFER_H */

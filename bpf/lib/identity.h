/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_IDENTITY_H
#define RELOADLAB_IDENTITY_H

#include "common.h"

/* Bits of an identity that a mark and a VNI have room for. */
#define IDENTITY_BITS 24

/*
 * The identity as it goes into a mark or a VNI. One above IDENTITY_BITS is that of an
 * address range, and means something on this node only: it goes as "the world", and who
 * receives the packet asks its own ipcache (resolve_source()). Cut off, it would be
 * somebody else's, and 1 << 24 | 1 even the host's.
 */
static __always_inline __u32 identity_to_carry(__u32 identity)
{
	return identity >> IDENTITY_BITS ? WORLD_ID : identity;
}

#endif /* RELOADLAB_IDENTITY_H */

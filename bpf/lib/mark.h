/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_MARK_H
#define RELOADLAB_MARK_H

#include "identity.h"

/* Bits 8-11 of skb->mark say what the other bits carry. */
#define MARK_MAGIC_HOST_MASK	0x0F00
#define MARK_MAGIC_HOST		0x0C00	/* sent by the host itself */
#define MARK_MAGIC_IDENTITY	0x0F00	/* identity: its low 16 bits in 16-31, the next 8 in 0-7 */

/* Leave the source identity in the mark, where it survives the way through the stack. */
static __always_inline void mark_set_identity(struct __ctx_buff *ctx, __u32 identity)
{
	__u32 carried = identity_to_carry(identity);

	ctx->mark = carried << 16 | carried >> 16 | MARK_MAGIC_IDENTITY;
}

static __always_inline __u32 mark_get_identity(__u32 mark)
{
	return (mark & 0xff) << 16 | mark >> 16;
}

static __always_inline bool mark_has_identity(__u32 mark)
{
	return (mark & MARK_MAGIC_HOST_MASK) == MARK_MAGIC_IDENTITY;
}

static __always_inline bool mark_is_host(__u32 mark)
{
	return (mark & MARK_MAGIC_HOST_MASK) == MARK_MAGIC_HOST;
}

/*
 * The identity of what comes out of the host's stack; the mark is cleared, because it
 * has done its duty and routing rules look at it. A packet that no device received
 * (ingress_ifindex 0) was sent by the host itself. WORLD_ID means: not known here.
 */
static __always_inline __u32 mark_take_identity(struct __ctx_buff *ctx)
{
	__u32 mark = ctx->mark;

	ctx->mark = 0;
	if (mark_has_identity(mark))
		return mark_get_identity(mark);
	if (mark_is_host(mark) || !ctx->ingress_ifindex)
		return HOST_ID;
	return WORLD_ID;
}

#endif /* RELOADLAB_MARK_H */

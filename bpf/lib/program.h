/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_PROGRAM_H
#define RELOADLAB_PROGRAM_H

#include "drop.h"
#include "hits.h"
#include "tailcall.h"

/*
 * A tail program: it counts its hit, runs `body`, an expression that sees ctx and trace,
 * and is the one drop exit of all that is inlined there. `label` is who sent the packet,
 * as far as is known before; `dir` the direction in which a drop counts.
 */
#define TAIL_PROGRAM(name, slot, hit, label, dir, body) \
	__section_tail(CILIUM_MAP_CALLS, slot) \
	int name(struct __ctx_buff *ctx) \
	{ \
		struct trace trace = TRACE_UNTRACKED(label); \
		int ret; \
	\
		continue_chain(ctx, hit); \
		ret = (body); \
		return ret < 0 ? drop_packet(ctx, &trace, ret, dir) : ret; \
	}

#endif /* RELOADLAB_PROGRAM_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_ENFORCE_H
#define RELOADLAB_ENFORCE_H

#include "conntrack.h"
#include "icmp6.h"
#include "policy.h"

/*
 * The policy for a packet that connection tracking has seen: 0, or why it is dropped.
 * Answers and errors about a connection pass. What comes in is held against the rules
 * packet by packet; what goes out only when it opens a connection, which is then known.
 */
static __always_inline int enforce(struct __ctx_buff *ctx, struct packet *pkt, const struct trace *who,
				   bool from_tunnel, const enum ct_dir dir, const enum family family)
{
	int ret;

	if (pkt->ct == CT_REPLY || pkt->ct == CT_RELATED)
		return 0;
	if (dir == CT_EGRESS && pkt->ct == CT_ESTABLISHED)
		return 0;
	/* How neighbours find each other is no connection, and never comes from another link. */
	if (dir == CT_INGRESS && icmp6_is_of_link(pkt, family))
		return 0;
	ret = policy_check(ctx, pkt, dir == CT_EGRESS ? who->dst_label : who->src_label, dir == CT_EGRESS);
	if (ret || pkt->ct == CT_ESTABLISHED)
		return ret;
	return ct_create(ctx, pkt, who->src_label, from_tunnel, dir, family);
}

#endif /* RELOADLAB_ENFORCE_H */

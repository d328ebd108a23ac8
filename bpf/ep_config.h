/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_EP_CONFIG_H
#define RELOADLAB_EP_CONFIG_H

/*
 * The endpoint, with the constants of a template: a compile without a generated header
 * finds this file, and gives an object in which every constant can be substituted.
 */
#include "lib/utils.h"

DEFINE_U32(LXC_IPV4, STATIC_BYTES(192, 0, 2, 3));
#define LXC_IPV4 fetch_u32(LXC_IPV4)
DEFINE_IPV6(LXC_IP, 0x20, 0x01, 0x0d, 0xb8, 0x0b, 0xad, 0xca, 0xfe, 0x60, 0x0d, 0xbe, 0xe2, 0x0b, 0xad, 0xca, 0xfe);
DEFINE_MAC(NODE_MAC, 0x02, 0x00, 0x60, 0x0d, 0xf0, 0x0d);
#define NODE_MAC fetch_mac(NODE_MAC)
DEFINE_U16(LXC_ID, 65535);
#define LXC_ID fetch_u16(LXC_ID)
DEFINE_U32(SECLABEL, 2);
#define SECLABEL fetch_u32(SECLABEL)
DEFINE_U32(POLICY_VERDICT_LOG_FILTER, 0xffff);
#define POLICY_VERDICT_LOG_FILTER fetch_u32(POLICY_VERDICT_LOG_FILTER)
#ifndef GENERATION
DEFINE_U32(GENERATION, 1);
# define GENERATION fetch_u32(GENERATION)
#endif /* GENERATION */

#define CALLS_MAP cilium_calls_65535
#define POLICY_MAP cilium_policy_65535
#define LOCAL_DELIVERY_METRICS 1

/* Endpoint routes are off unless the command line turns them on. */
#ifndef USE_BPF_PROG_FOR_INGRESS_POLICY
# ifndef ENABLE_ROUTING
#  define ENABLE_ROUTING 1
# endif /* ENABLE_ROUTING */
#endif /* USE_BPF_PROG_FOR_INGRESS_POLICY */

#endif /* RELOADLAB_EP_CONFIG_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_NODE_CONFIG_H
#define RELOADLAB_NODE_CONFIG_H

/*
 * The node, with values that stand for none: a compile without a generated header
 * finds this file. The generated one comes first on the include path.
 */
#include "lib/utils.h"

#ifndef ENABLE_IPV4
# define ENABLE_IPV4 1
#endif /* ENABLE_IPV4 */
#ifndef ENABLE_IPV6
# define ENABLE_IPV6 1
#endif /* ENABLE_IPV6 */

#define HOST_IFINDEX 1
#define HOST_IFINDEX_MAC { .addr = { 0x02, 0x00, 0x00, 0x00, 0x00, 0x01 } }
#define CILIUM_IFINDEX 1
#define CILIUM_NET_MAC { .addr = { 0x02, 0x00, 0x00, 0x00, 0x00, 0x02 } }
#define VLAN_FILTER(ifindex, vlan_id) return false;

#endif /* RELOADLAB_NODE_CONFIG_H */
